"""Plugins that do what none should when they are imported, and the reason that is shown."""

from __future__ import annotations

from textwrap import dedent


def good(name: str, summary: str = "A summary") -> str:
    """The source of a plugin with one backbone."""
    return dedent(f"""
        from flmm_core import BackboneSpec, ModelInfo, hookimpl

        @hookimpl
        def flmm_backbones():
            models = {{"tiny": ModelInfo("a:b", "MIT")}}
            return [BackboneSpec("{name}", "somewhere:Class", {summary!r}, models)]
        """)


SECONDS = 2
"""What plugins may take in the tests, where machines are busy; elsewhere it is 1."""
LATE = f"its import had not ended after {SECONDS} s"
FORK = "import os, time\nif os.fork() == 0: time.sleep(1000)\n"
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0: time.sleep(1000)
    os._exit(0)
os.wait()
"""
NOISE = """
import os
for _ in range(200):
    os.write(1, b'\\xff\\x00\\x1b[2J' * 1000)
    os.write(2, b'\\xfe')
"""

HOSTILE = {
    "hangs": ("import time; time.sleep(1000)", LATE),
    "spins": ("while True: pass", LATE),
    "hook hangs": (
        "from flmm_core import hookimpl\n@hookimpl\ndef flmm_backbones():\n  while 1: pass",
        LATE,
    ),
    "exits": ("import os; os._exit(0)", "importing it ends the process (status 0)"),
    "exits with 3": ("import os; os._exit(3)", "importing it ends the process (status 3)"),
    "raises SystemExit": ("raise SystemExit(4)", "SystemExit: 4"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "importing it ends the process (SIGSEGV)"),
    "recurses": ("def f(): f()\nf()", "RecursionError: maximum recursion depth exceeded"),
    "wants memory": ("x = b'1' * (1 << 45)", "MemoryError"),
    "odd characters": (
        "raise ValueError('\\x1b[31m\\x07 \\udce9\\u202e ' + 'x' * 10**7)",
        "ValueError: \\x1b[31m\\x07 \\udce9\\u202e xxx",
    ),
    "text of its error fails": (
        "class E(Exception):\n  def __str__(self): raise self\nraise E",
        "E",
    ),
    "forks": (FORK + good("forks"), "importing it leaves a process running"),
    "forks and exits": (FORK + "os._exit(5)", "importing it ends the process (status 5)"),
    "leaves a daemon": (DAEMON + good("daemon"), "importing it leaves a process running"),
    "leaves a thread": (
        "import threading, time\nthreading.Thread(target=time.sleep, args=(99,)).start()\n"
        + good("threads"),
        "importing it leaves a thread running",
    ),
    "returns no list": (
        "from flmm_core import hookimpl\n@hookimpl\ndef flmm_backbones(): return {}",
        "TypeError: flmm_backbones() must return a list of BackboneSpec, not {}",
    ),
    "wrong type in a spec": (
        good("wrong").replace("'A summary'", "None"),
        "ValidationError: 1 validation error for BackboneSpec summary Input should be a valid str",
    ),
    "declares too much": (
        good("huge").replace("'A summary'", "'x' * 10**7"),
        "it declares more than 1,000,000 bytes",
    ),
    "closes stdout": (
        "import sys; sys.stdout.close()\n" + good("closes"),
        "importing it replaces or closes stdout or stderr",
    ),
    "closes every file": (
        "import os; os.closerange(0, 4096)\n" + good("closes"),
        "importing it ends the process (status 0)",
    ),
    "changes the folder": (
        "import os; os.chdir('/')\n" + good("folder"),
        "importing it changes the working directory",
    ),
    "changes sys.path": (
        "import sys; sys.path.insert(0, '/nowhere')\n" + good("path"),
        "importing it changes what sys.path begins with",
    ),
    "takes signals": (
        "import signal; signal.signal(signal.SIGTERM, lambda *_: None)\n" + good("signals"),
        "importing it changes how signals are handled",
    ),
    "kills its parent": (
        "import os, signal, time\nos.kill(os.getppid(), signal.SIGKILL)\ntime.sleep(9)",
        "importing it stops or ends the process that examines it",
    ),
    "stops its parent": (
        "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(0.3)\n"
        + good("stopper"),
        "importing it stops or ends the process that examines it",
    ),
}
