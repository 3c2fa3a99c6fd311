"""Runs the command line in a process of its own, to which something happens at an exact place.

A place is a row of events of Python's audit hooks (opening, renaming, removing a file, ...), each
with a part of the path. When the last one is about to happen, the process kills itself or may write
no more: nothing of the code under test is replaced, and SIGKILL leaves it no time to clean up.
"""

from __future__ import annotations

import os
import resource
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from flmm_core.cli import main
from flmm_core.training import train as train  # now, not in every child


class Event(NamedTuple):
    """An audit event ("open", "os.rename", ...) one of whose paths contains a text."""

    name: str
    text: str = ""

    def is_it(self, name: str, arguments: tuple[Any, ...]) -> bool:
        paths = [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]
        return name == self.name and any(self.text in os.fsdecode(path) for path in paths)


def kill(signal: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), signal)


def fill_disk() -> None:
    """No file may become larger than this; the error is that of a full disk, but for its number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def run_command(
    arguments: Sequence[str],
    log: Path,
    place: Sequence[Event] = (),
    happens: Callable[[], object] = fill_disk,
) -> int:
    """Run `flmm` in a forked process; returns its exit code, or minus the signal that ended it.

    The fork saves the seconds that a fresh interpreter needs to import torch. What it says goes
    to `log`.
    """
    child = os.fork()
    if child == 0:
        code = 70
        try:
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            for stream in (1, 2):
                os.dup2(output, stream)
            sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
            torch.set_num_threads(1)  # a thread pool does not survive a fork
            if place:
                sys.addaudithook(_Hook(place, happens))
            code = main(arguments)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


class _Hook:
    def __init__(self, place: Sequence[Event], happens: Callable[[], object]) -> None:
        self.left, self.happens = list(place), happens

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self.left and self.left[0].is_it(name, arguments):
            del self.left[0]
            if not self.left:
                self.happens()
