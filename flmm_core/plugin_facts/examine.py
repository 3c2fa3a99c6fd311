"""Has plugins imported in another process, so that none can hang, end or change this one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress

import psutil

from flmm_core.plugin_facts.examiner import READY, Request, answer_to
from flmm_core.plugin_facts.facts import Facts

START_SECONDS = 20.0
"""How long the process may take to start; a machine can be busy."""
PRELOAD_SECONDS = 180.0
"""The same where it imports torch first."""
SPARE_SECONDS = 1.0
"""What it may take longer than the plugins in it."""
MOST_LINE = 4_000_000
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); "
    "from flmm_core.plugin_facts.examiner import main; main()"
)


def examine(
    entries: Sequence[tuple[str, str]],
    seconds: float,
    *,
    classes: bool = False,
    preload: Sequence[str] = (),
) -> list[Facts]:
    """What each plugin offers, in the same order.

    Plugins that hinder the process that examines all are told by examining each alone. Where no
    process can be started, plugins are imported in this one.

    Args:
        entries: Name and value of each entry point.
        seconds: What all together may take. All in all it takes a few more: twice as many if a
            plugin hinders, and what processes take to start.
        classes: The values name classes (`package.module:Class`), of which only is asked whether
            they can be imported.
        preload: Modules that are imported once for all, before the time begins.
    """
    found: dict[int, Facts] = {}
    can_share = hasattr(os, "fork") or classes
    for alone in (False, True) if can_share else (True,):
        missing = [number for number in range(len(entries)) if number not in found]
        groups = [[number] for number in missing] if alone or len(missing) == 1 else [missing]
        asked = [
            Request(
                entries=[entries[number] for number in group],
                seconds=seconds,
                classes=classes,
                preload=[*preload],
            )
            for group in groups
            if group
        ]
        runs = [_Run(request) for request in asked]
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

    def __init__(self, request: Request) -> None:
        self.request = request
        self.answers: dict[int, Facts] = {}
        self.is_ready = False
        self.begin = self.ready_at = time.monotonic()
        self.process: subprocess.Popen[bytes] | None = None
        self.ready, self.done = threading.Event(), threading.Event()
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
            self.ready_at = time.monotonic()
            self.ready.set()
            while self.is_ready and len(self.answers) < len(self.request.entries):
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
        entries, seconds = self.request.entries, self.request.seconds
        limit = PRELOAD_SECONDS if self.request.preload else START_SECONDS
        if self.process is None or (_wait(self.ready, self.begin + limit) and not self.is_ready):
            if self.request.classes:
                error = "the process that was to import it could not be started, or ended"
                return {number: Facts(error=error) for number in range(len(entries))}
            return {number: answer_to(self.request, number) for number in range(len(entries))}
        if not self.is_ready:
            return {number: Facts(waited=seconds) for number in range(len(entries))}
        in_time = _wait(self.done, self.ready_at + seconds + SPARE_SECONDS)
        if self.answers or len(entries) > 1:
            return dict(self.answers)
        if in_time:
            return {0: Facts(error="importing it ends the process that examines it")}
        if self._is_stopped():
            return {0: Facts(error="importing it stops the process that examines it")}
        return {0: Facts(waited=seconds)}

    def _is_stopped(self) -> bool:
        with suppress(psutil.Error):
            return bool(self.process and _status(self.process.pid) == psutil.STATUS_STOPPED)
        return False

    def end(self) -> None:
        """Let it clean up, or end it."""
        if self.process is None:
            return
        if self.done.is_set():
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(SPARE_SECONDS)
        self.process.kill()
        self.process.wait()


def _wait(event: threading.Event, until: float) -> bool:
    return event.wait(max(until - time.monotonic(), 0.0))


def _status(pid: int) -> str:
    return str(psutil.Process(pid).status())
