"""Has plugins imported in another process, so that none can hang, end or change this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import EntryPoint

from flmm_core.plugin_facts.examiner import READY, Request, facts_of_import
from flmm_core.plugin_facts.facts import Facts

START_SECONDS = 20.0
"""How long the process may take to start; a machine can be busy."""
SPARE_SECONDS = 1.0
"""What it may take longer than the plugins in it."""
MOST_LINE = 4_000_000
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from flmm_core.plugin_facts.examiner import main; main()"
)


def examine(entries: Sequence[EntryPoint], seconds: float) -> list[Facts]:
    """What each plugin offers, in the same order; all together may take so many seconds.

    If one ends the process that examines all, each is examined alone. Where no process can be
    started, plugins are imported in this one.
    """
    found: dict[int, Facts] = {}
    for alone in (False, True) if hasattr(os, "fork") else (True,):
        missing = [number for number in range(len(entries)) if number not in found]
        groups = [[number] for number in missing] if alone or len(missing) == 1 else [missing]
        runs = [_Run([entries[number] for number in group], seconds) for group in groups if group]
        try:
            for run, group in zip(runs, groups, strict=False):
                answers = run.wait()
                found.update({group[number]: facts for number, facts in answers.items()})
        finally:
            for run in runs:
                run.end()
    return [found[number] for number in range(len(entries))]


class _Run:
    """One process that examines plugins, and a thread that listens to it."""

    def __init__(self, entries: Sequence[EntryPoint], seconds: float) -> None:
        self.entries, self.seconds = entries, seconds
        self.answers: dict[int, Facts] = {}
        self.is_ready = False
        self.process: subprocess.Popen[bytes] | None = None
        self.ready, self.done = threading.Event(), threading.Event()
        request = Request(entries=[(e.name, e.value) for e in entries], seconds=seconds)
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-c", START, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for this process alone, which ends the other
            )
        except (OSError, ValueError):
            return
        threading.Thread(target=self._listen, args=(self.process,), daemon=True).start()
        assert self.process.stdin is not None
        with suppress(OSError):  # of a process that has ended already
            self.process.stdin.write(request.model_dump_json().encode() + b"\n")
            self.process.stdin.close()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        try:
            self.is_ready = process.stdout.readline(MOST_LINE) == READY
            self.ready.set()
            while self.is_ready and len(self.answers) < len(self.entries):
                line = process.stdout.readline(MOST_LINE)
                if not line:
                    break
                number, facts = json.loads(line)
                self.answers[number] = Facts.model_validate(facts)
        except (ValueError, OSError):  # it was ended, or does not say what it should
            pass
        finally:
            self.ready.set()
            self.done.set()

    def wait(self) -> dict[int, Facts]:
        """What it has found out, by number; a plugin that is alone always has an answer."""
        if self.process is None or not (self.ready.wait(START_SECONDS) and self.is_ready):
            return {n: facts_of_import(e.name, e.value) for n, e in enumerate(self.entries)}
        in_time = self.done.wait(self.seconds + SPARE_SECONDS)
        if not self.answers and len(self.entries) == 1:
            if not in_time:
                return {0: Facts(waited=self.seconds)}
            return {0: Facts(error="importing it ends the process that examines it")}
        return self.answers

    def end(self) -> None:
        """Let it clean up, or end it."""
        if self.process is None:
            return
        if self.done.is_set():
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(SPARE_SECONDS)
        self.process.kill()
        self.process.wait()
