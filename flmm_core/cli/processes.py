"""Commands that several processes share: started by a launcher, or by `--processes`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from uuid import uuid4

import click

from flmm_core.errors import FlmmError, LostProcessError, RunError, UsageError

if TYPE_CHECKING:
    from flmm_core.world import World

processes_option = click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Start N processes on this machine that share the work, one for each GPU; without GPUs"
    " they share the CPU. `torchrun`, `accelerate launch` and `srun` start them, too.",
)


def start(processes: int | None, device: str, world: World) -> None:
    """Run this command in `processes` processes and exit, unless this is one of several or alone.

    Raises:
        UsageError: They cannot have their devices, or a launcher has started another number.
        RunError: One was killed.
    """
    if processes in (None, world.size):
        return
    if world.size > 1:
        raise UsageError(
            f"--processes is {processes}, but a launcher has started {world.size}.",
            repair="Omit --processes, or start the command without a launcher.",
        )
    from flmm_core.world import check_device

    check_device(device, processes)
    arguments = click.get_current_context().find_root().obj
    raise click.exceptions.Exit(_run([sys.executable, "-m", "flmm_core", *arguments], processes))


def _run(command: list[str], processes: int) -> int:
    """Start a command in several processes, as `torchrun` does, and wait; their exit code.

    If one of them fails, the others are stopped.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    with TemporaryDirectory() as logs, _share_cores(processes), _silent_launcher():
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
        )
        try:
            elastic_launch(config, command[0])(*command[1:])
        except SignalException:
            return 130
        except ChildFailedError as error:
            rank, first = error.get_first_failure()
            if first.exitcode >= 0:
                return int(first.exitcode)
            raise RunError(
                f"Process {rank} of {processes} was killed by {first.signal_name()}.",
                found="The others have been stopped. By SIGKILL the system also ends a process when"
                " memory runs out.",
                repair="What was written whole is kept: `flmm train --resume` goes on from there.",
            ) from None
    return 0


@contextmanager
def _silent_launcher() -> Iterator[None]:
    """Hide what torch logs about processes that end: they speak for themselves."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


@contextmanager
def _share_cores(processes: int) -> Iterator[None]:
    """Let each process use its share of the cores, unless the user has decided."""
    from flmm_core.loader.cpus import usable_cpus

    name = "OMP_NUM_THREADS"
    if name in os.environ:
        yield
        return
    os.environ[name] = str(max(1, usable_cpus() // processes))
    try:
        yield
    finally:
        del os.environ[name]


@contextmanager
def joined(processes: int | None) -> Iterator[World]:
    """The world of this process for a command; only the main process says what all know.

    `processes`: as asked; what started so many says itself that one was killed.
    """
    from flmm_core.world import World

    world = World.join()
    if not world.is_main:
        logging.getLogger("flmm_core").setLevel(logging.ERROR)
    code = 0
    try:
        yield world
    except KeyboardInterrupt:
        if world.is_main:
            raise  # without a farewell: the others wait until this process has spoken and ended
        code = 130
    except LostProcessError as error:
        if processes is None:
            raise
        raise click.exceptions.Exit(error.exit_code) from error
    except FlmmError as error:
        if world.is_main or not error.agreed:
            raise
        code = error.exit_code
    world.close()
    if code:
        raise click.exceptions.Exit(code)
