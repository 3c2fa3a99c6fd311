"""The process in which plugins are imported to learn what they offer; `examine` starts it.

It reads a `Request` from stdin, a line of JSON, and writes to stdout the line `READY`, then a line
`[number of the entry point, Facts]` for each. Where the system can, every plugin is imported in a
process of its own, forked from this one, which has loaded already what all plugins import. Between
the two stands a warden, which tells how the plugin's process ended: a plugin that kills or stops
its parent hinders only that. What is not done in time is killed, with all that it has started.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import selectors
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import BinaryIO, NamedTuple

import psutil
from pydantic import BaseModel

from flmm_core.errors import one_line
from flmm_core.plugin_facts.facts import Facts, Offer, to_data
from flmm_core.plugin_facts.offers import KINDS, offered

READY = b"ready\n"
MOST_BYTES = 1_000_000
"""Of what a plugin declares, as JSON."""
MOST_MEMORY = 2 << 30
"""Bytes that the import of a plugin may take; at most half of what is available."""
_DIE_WITH_PARENT, _ADOPT_ORPHANS = 1, 36  # of prctl(2)


class Request(BaseModel):
    """What `examine` is asked."""

    entries: list[tuple[str, str]]
    seconds: float
    classes: bool = False
    preload: list[str] = []


def main() -> None:
    """Answer the request on stdin."""
    request = Request.model_validate_json(sys.stdin.buffer.readline())
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # what a plugin prints is not for the user
        os.dup2(nowhere, stream)
    sys.dont_write_bytecode = True  # what is installed stays as it is
    for module in request.preload:
        with suppress(Exception):  # it is told where it is needed
            importlib.import_module(module)
    answers.write(READY)
    if hasattr(os, "fork"):
        _examine_apart(request, answers)
    else:
        for number in range(len(request.entries)):
            _answer(answers, number, answer_to(request, number))


def answer_to(request: Request, number: int) -> Facts:
    """Import one plugin, or one class, in this process."""
    return (facts_of_class if request.classes else facts_of_import)(*request.entries[number])


def facts_of_class(name: str, value: str) -> Facts:
    """Whether a class can be imported; `value` is `package.module:Class`."""
    start = time.perf_counter()
    error = ""
    try:
        if not isinstance(metadata.EntryPoint(name, value, "flmm").load(), type):
            error = f"TypeError: {value} is not a class"
    except BaseException as raised:
        error = one_line(raised)
    return Facts(seconds=time.perf_counter() - start, error=error)


def facts_of_import(name: str, value: str) -> Facts:
    """Import the plugin of an entry point in this process, and ask it for everything."""
    before = _State()
    start = time.perf_counter()
    try:
        module = metadata.EntryPoint(name, value, "flmm").load()
    except BaseException as error:  # a plugin may even raise SystemExit
        return Facts(seconds=time.perf_counter() - start, error=one_line(error))
    facts = Facts(seconds=time.perf_counter() - start)
    for kind in KINDS:
        try:
            offer = Offer(declared=[to_data(spec) for spec in offered(module, kind)])
        except BaseException as error:
            offer = Offer(error=one_line(error))
        if offer.declared or offer.error:
            facts.offers[kind.kind] = offer
    if changed := before.changed():
        return Facts(seconds=facts.seconds, error=f"importing it {changed}")
    return facts


class _State:
    """What of its process a plugin has no business to change."""

    def __init__(self) -> None:
        self.folder = Path.cwd()
        self.path = list(sys.path)
        self.streams = sys.stdout, sys.stderr
        self.handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
        self.threads = set(threading.enumerate())
        self.parent = os.getppid()

    def changed(self) -> str:
        """The first change, in words; empty if there is none."""
        checks: tuple[tuple[str, Callable[[], bool]], ...] = (
            ("changes the working directory", lambda: Path.cwd() != self.folder),
            ("changes what sys.path begins with", lambda: not self._same_path()),
            ("replaces or closes stdout or stderr", lambda: not self._same_streams()),
            ("changes how signals are handled", lambda: not self._same_handlers()),
            ("leaves a thread running", self._left_thread),
            ("leaves a process running", _has_children),
            ("stops or ends the process that examines it", lambda: not self._same_parent()),
        )
        for words, check in checks:
            try:
                if check():
                    return words
            except Exception:  # such as OSError for a descriptor that is closed
                return words
        return ""

    def _same_path(self) -> bool:
        return sys.path[: len(self.path)] == self.path

    def _same_streams(self) -> bool:
        for stream in self.streams:
            stream.write("")  # ValueError if it is closed
            os.fstat(stream.fileno())
        return (sys.stdout, sys.stderr) == self.streams

    def _same_handlers(self) -> bool:
        return all(signal.getsignal(number) is old for number, old in self.handlers.items())

    def _same_parent(self) -> bool:
        if os.getppid() != self.parent:
            return False
        return bool(psutil.Process(self.parent).status() != psutil.STATUS_STOPPED)

    def _left_thread(self) -> bool:
        """Whether there is another thread for which Python would wait at its end."""
        return any(not thread.daemon for thread in set(threading.enumerate()) - self.threads)


def _has_children() -> bool:
    if not hasattr(os, "fork"):
        return False
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return False
    return True


def _answer(answers: BinaryIO, number: int, facts: Facts) -> None:
    answers.write(json.dumps([number, facts.model_dump()]).encode() + b"\n")


# --- a process for each plugin --------------------------------------------------------------------


class _Child(NamedTuple):
    number: int
    pipe: int
    said: bytearray


def _examine_apart(request: Request, answers: BinaryIO) -> None:
    _control(_ADOPT_ORPHANS)
    memory = min(MOST_MEMORY, psutil.virtual_memory().available // 2)
    until = time.monotonic() + request.seconds
    with selectors.DefaultSelector() as waiting:
        for number in range(len(request.entries)):
            child = _Child(number, _fork(request, number, memory, answers), bytearray())
            waiting.register(child.pipe, selectors.EVENT_READ, child)
        while waiting.get_map() and (left := until - time.monotonic()) > 0:
            for key, _ in waiting.select(left):
                child = key.data
                part = os.read(child.pipe, 1 << 16)
                child.said.extend(part)
                if not part or part.endswith(b"\n") or len(child.said) > MOST_BYTES:
                    waiting.unregister(child.pipe)
                    _answer(answers, child.number, _heard(child))
        late = [key.data.number for key in waiting.get_map().values()]
    for number in late:
        _answer(answers, number, Facts(waited=request.seconds))
    _kill_all()


def _heard(child: _Child) -> Facts:
    """What a plugin's process has said, or else its warden."""
    if len(child.said) > MOST_BYTES:
        return Facts(error=f"it declares more than {MOST_BYTES:,} bytes")
    for line in child.said.splitlines():
        with suppress(ValueError):
            return Facts.model_validate_json(bytes(line))
    return Facts(error="importing it stops or ends the process that examines it")


def _fork(request: Request, number: int, memory: int, answers: BinaryIO) -> int:
    """Start a warden and a plugin's process below it; returns the pipe on which they speak."""
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        return reading
    try:
        answers.close()
        os.close(reading)
        os.setsid()
        _control(_DIE_WITH_PARENT, signal.SIGKILL)
        _control(_ADOPT_ORPHANS)
        _limit(memory)
        if plugin := os.fork():
            code = os.waitstatus_to_exitcode(os.waitpid(plugin, 0)[1])
            how = f"status {code}" if code >= 0 else signal.Signals(-code).name
            _say(writing, Facts(error=f"importing it ends the process ({how})"))
        else:
            os.setsid()
            _control(_DIE_WITH_PARENT, signal.SIGKILL)
            _control(_ADOPT_ORPHANS)
            own = os.getpid()
            facts = answer_to(request, number)
            if os.getpid() == own:  # and not a process that the plugin has forked
                _say(writing, facts)
    finally:
        os._exit(0)


def _say(pipe: int, facts: Facts) -> None:
    said = facts.model_dump_json().encode() + b"\n"
    while said:
        said = said[os.write(pipe, said) :]


def _kill_all() -> None:
    """Kill all processes below this one; those that they start meanwhile are met next time."""
    for _ in range(50):
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                process.kill()
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
            time.sleep(0.005)
            continue
        return


def _limit(memory: int) -> None:
    """Let no more memory be taken, and no core be dumped."""
    import resource

    for what, most in ((resource.RLIMIT_DATA, memory), (resource.RLIMIT_CORE, 0)):
        with suppress(OSError, ValueError):
            hard = resource.getrlimit(what)[1]
            within = most if hard == resource.RLIM_INFINITY else min(most, hard)
            resource.setrlimit(what, (within, hard))


def _control(what: int, value: int = 1) -> None:
    """prctl(2), where there is one."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(what, value, 0, 0, 0)
