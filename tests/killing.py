"""Runs the command line in a process of its own, to which something happens at an exact place.

A place is a row of events of Python's audit hooks (opening, renaming, removing a file, ...), each
with a part of the path. When the last one is about to happen, the process kills itself or may write
no more: nothing of the code under test is replaced, and SIGKILL leaves it no time to clean up.

The processes are forked from a server that has imported torch and done nothing else: a fork of the
tests' own process would lack its threads, and wait for them for ever.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import torch._dynamo  # this and others now, not in every child
import torchvision  # noqa: F401

import flmm_qwen.backbone  # noqa: F401
from flmm_core.cli import main
from flmm_core.training import train as train


class Event(NamedTuple):
    """An audit event ("open", "os.rename", ...) one of whose paths contains a text."""

    name: str
    text: str = ""

    def is_it(self, name: str, arguments: tuple[Any, ...]) -> bool:
        paths = [one for one in arguments if isinstance(one, str | bytes | os.PathLike)]
        return name == self.name and any(self.text in os.fsdecode(path) for path in paths)


def kill(number: int) -> Callable[[], None]:
    return partial(_kill, number)


def _kill(number: int) -> None:
    os.kill(os.getpid(), number)


def fill_disk() -> None:
    """No file may become larger than this; the error is that of a full disk, but for its number."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.RLIM_INFINITY))


def run_command(
    arguments: Sequence[str],
    log: Path,
    place: Sequence[Event] = (),
    happens: Callable[[], object] = fill_disk,
) -> int:
    """Run `flmm` in a process; returns its exit code, or minus the signal that ended it.

    What it says goes to `log`.
    """
    return _ended(_begin(arguments, log, {}, place, happens))


def run_processes(
    arguments: Sequence[str],
    count: int,
    log: Path,
    place: Sequence[Event] = (),
    happens: Callable[[], object] = fill_disk,
    *,
    to: int = 0,
    bound: float = 120,
) -> list[int]:
    """As `run_command`, in `count` processes that share the work, to one of which it happens.

    All must end within `bound` seconds. What number 1 says goes to `log`.1, and so on.
    """
    started = start_processes(arguments, count, log, place, happens, to=to)
    deadline = time.monotonic() + bound
    try:
        for process in started:
            process.join(max(0, deadline - time.monotonic()))
        codes = [process.exitcode for process in started]
        assert None not in codes, f"still running; ended: {codes}"
    finally:
        for process in started:
            process.kill()
    return [_ended(process) for process in started]


def start_processes(
    arguments: Sequence[str],
    count: int,
    log: Path,
    place: Sequence[Event] = (),
    happens: Callable[[], object] = fill_disk,
    *,
    to: int = 0,
) -> list[BaseProcess]:
    """The processes of `run_processes`, which the caller waits for."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [
        _begin(
            arguments,
            log.with_name(f"{log.name}.{rank}") if rank else log,
            common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            place if rank == to else (),
            happens,
        )
        for rank in range(count)
    ]


def _begin(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    place: Sequence[Event],
    happens: Callable[[], object],
) -> BaseProcess:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):
        forkserver.ensure_running()  # reads the path but once
    given = list(arguments), log, {**os.environ, **environment}, Path.cwd(), place, happens
    process = context.Process(target=_run, args=given)
    process.start()
    return process


def _ended(process: BaseProcess) -> int:
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(
    arguments: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    folder: Path,
    place: Sequence[Event],
    happens: Callable[[], object],
) -> None:
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(output, stream)
        sys.stdout, sys.stderr = (os.fdopen(n, "w", closefd=False) for n in (1, 2))
        os.environ.clear()
        os.environ.update(environment)
        os.chdir(folder)
        torch.set_num_threads(1)
        if place:
            sys.addaudithook(_Hook(place, happens))
        code = main(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


class _Hook:
    def __init__(self, place: Sequence[Event], happens: Callable[[], object]) -> None:
        self.left, self.happens = list(place), happens

    def __call__(self, name: str, arguments: tuple[Any, ...]) -> None:
        if self.left and self.left[0].is_it(name, arguments):
            del self.left[0]
            if not self.left:
                self.happens()
