"""The processes that share the work of a command, and how they agree.

    world = World.join()  # as torchrun, accelerate launch or srun started this process
    mine = world.share(samples)
    with world.agreed():  # an error in one process is raised in all of them
        measure(mine)

One process alone is a world as well, without any of torch's. All processes call what has to do
with the others in the same order.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from flmm_core.errors import (
    FlmmError,
    LostProcessError,
    RunError,
    UsageError,
    dead_worker_error,
    machine_error,
)

if TYPE_CHECKING:
    from torch import Tensor

T = TypeVar("T")

WAIT = timedelta(minutes=30)
"""How long a process waits for the others, which may still be loading or saving."""
FAREWELL = timedelta(seconds=5)
"""How long a process that ends lets the first one say why."""
STEP_TASKS = "SLURM_STEP_NUM_TASKS"
"""Set by `srun`, but not in a batch script, which is one process whatever its allocation."""


class World:
    """All processes of a command.

    Attributes:
        rank: Number of this process, from 0, the main one: it alone writes and speaks.
        size: Number of processes.
        local_rank: Its number among those of this machine, which is also that of its GPU.
        local_size: Number of processes on this machine.
    """

    def __init__(
        self, rank: int = 0, size: int = 1, local_rank: int = 0, local_size: int = 1
    ) -> None:
        self.rank, self.size = rank, size
        self.local_rank, self.local_size = local_rank, local_size
        self._farewell: Any = None

    @classmethod
    def join(cls) -> World:
        """The world that this process was started in; returns once all are there.

        Raises:
            UsageError: The environment is not one of a launcher.
            RunError: The others do not come.
        """
        _adopt_slurm(os.environ)
        size = _number("WORLD_SIZE", 1)
        if size < 2:
            return cls()
        if missing := [name for name in ("RANK", "MASTER_ADDR") if not os.environ.get(name)]:
            raise UsageError(
                f"WORLD_SIZE is {size}, but there is no {' and no '.join(missing)}.",
                found="One of several processes needs to know which one it is and where the first"
                " one runs.",
                repair="Start them with torchrun, accelerate launch, srun or --processes; for one"
                " process unset WORLD_SIZE.",
            )
        rank = _number("RANK", 0)
        world = cls(rank, size, _number("LOCAL_RANK", rank), _number("LOCAL_WORLD_SIZE", size))
        os.environ["LOCAL_RANK"] = str(world.local_rank)  # Accelerate insists on it
        world._connect()
        _end_with_launcher()
        return world

    def _connect(self) -> None:
        import torch
        from accelerate import PartialState
        from torch import distributed

        cpu = torch.cuda.device_count() < self.local_size
        # Objects and flags go through gloo, which notices a process that is gone at once.
        backend = {} if cpu else {"backend": "cuda:nccl,cpu:gloo"}
        try:
            PartialState(cpu=cpu, timeout=WAIT, **backend)
            self._farewell = distributed.new_group(backend="gloo", timeout=FAREWELL)
        except (RuntimeError, ValueError, OSError) as error:
            raise RunError(
                f"Process {self.rank} of {self.size} cannot reach the others.",
                found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                repair="All must be started, with the same WORLD_SIZE, MASTER_ADDR and MASTER_PORT"
                f" (now '{os.environ.get('MASTER_ADDR')}', '{os.environ.get('MASTER_PORT')}').",
            ) from error

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0

    def device(self, asked: str, device_map: str = "none") -> str:
        """The device of this process: `asked`, or of several processes a GPU for each.

        Raises:
            UsageError: There are not enough GPUs, or `asked` names a single one; or each process
                would spread its model over all of them.
        """
        if self.size == 1:
            return asked
        if device_map != "none":
            raise UsageError(
                f"--device-map {device_map} is for one process, and there are {self.size}.",
                found="Each process would spread its model over the same devices.",
                repair="Omit --device-map, so that each process has a device of its own; or run "
                "one process, whose model has all of them.",
            )
        check_device(asked, self.local_size)
        import torch

        on_cpu = asked == "cpu" or not torch.cuda.is_available()
        return "cpu" if on_cpu else f"cuda:{self.local_rank}"

    def title(self, device: str) -> str:
        """For the user: "2 processes (gloo, cpu)"; "" for one that was started alone.

        `device` is that of this process.
        """
        kind = device.partition(":")[0]
        if self.size > 1:
            return f"{self.size} processes ({'nccl' if kind == 'cuda' else 'gloo'}, {kind})"
        launched = any(name.startswith("ACCELERATE_") for name in os.environ)
        if not launched:
            return ""
        return "1 process (`accelerate launch` starts more with --multi_gpu; on CPUs: --processes)"

    # --- work that is shared ------------------------------------------------------------------

    def share(self, items: Sequence[T]) -> list[T]:
        """This process's part of some items; every item is in the part of one process."""
        return part(items, self.rank, self.size)

    def gather(self, value: T) -> list[T]:
        """The values of all processes by rank, in each of them; they are pickled."""
        if self.size == 1:
            return [value]
        from torch import distributed

        found: list[Any] = [None] * self.size
        with self._connected():
            distributed.all_gather_object(found, value)
        return found

    def tell(self, value: T) -> T:
        """The main process's value, in all of them; it is pickled."""
        if self.size == 1:
            return value
        from torch import distributed

        told = [value]
        with self._connected():
            distributed.broadcast_object_list(told, src=0)
        return told[0]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        if self.size == 1:
            return flag
        import torch

        count = torch.tensor([int(flag)])
        self.sum_(count)
        return bool(count)

    def sum_(self, values: Tensor) -> None:
        """Replace a tensor by its sum over all processes, the same bits in each of them.

        The order of the sum depends on the number of processes and the backend alone (on GPUs also
        on the way they are connected), so that a run repeats itself.
        """
        if self.size == 1:
            return
        from torch import distributed

        with self._connected():
            distributed.all_reduce(values)

    # --- agreement ----------------------------------------------------------------------------

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Raise an error of the block in all processes, once all have left it.

        Nothing in the block may need the other processes. They raise the error of the first one
        that has one.
        """
        if self.size == 1:
            yield
            return
        own: Exception | None = None
        try:
            yield
        except LostProcessError:
            raise
        except Exception as error:
            own = error
        if not self.any(own is not None):
            return
        told = next(error for error in self.gather(self._told(own)) if error is not None)
        told.agreed = True
        if own is None or not (self.is_main or self._known(own) is None):
            raise told from own
        if isinstance(own, FlmmError):
            own.agreed = True
        raise own

    def main_does(self, work: Callable[[], T]) -> T:
        """The result of what the main process does while the others wait; it is pickled."""
        done: Any = None
        with self.agreed():
            if self.is_main:
                done = work()
        result: T = self.tell(done)
        return result

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does the block, which makes files that the others then find."""
        if not self.is_main:
            with self.agreed():
                pass
        with self.agreed():
            yield
        if self.is_main:
            with self.agreed():
                pass

    def _known(self, error: Exception) -> FlmmError | None:
        if isinstance(error, FlmmError):
            return error
        return machine_error(error) or dead_worker_error(error)

    def _told(self, error: Exception | None) -> FlmmError | None:
        """What the other processes learn of an error."""
        if error is None:
            return None
        return self._known(error) or RunError(
            f"Process {self.rank} of {self.size} failed.",
            found=f"{type(error).__name__}: {error}",
            repair="This is a fault of the program; the traceback of that process says where.",
        )

    @contextmanager
    def _connected(self) -> Iterator[None]:
        """LostProcessError if the others cannot be reached any more."""
        import torch

        try:
            yield
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ConnectionError) as error:
            raise LostProcessError(
                f"Process {self.rank} of {self.size} has lost the others.",
                found=str(error).splitlines()[0] if str(error) else type(error).__name__,
                repair="One of them has ended or was killed, perhaps for lack of memory; what it"
                " said last says why.",
            ) from error

    def close(self) -> None:
        """Leave the world, once all do or the main process has ended, for a few seconds at most.

        A launcher stops every process as soon as one has failed, perhaps before it could say why.
        """
        if self.size == 1:
            return
        from torch import distributed

        with suppress(Exception):
            distributed.barrier(self._farewell)
        with suppress(Exception):
            distributed.destroy_process_group()


def part(items: Sequence[T], number: int, count: int) -> list[T]:
    """One of `count` consecutive parts; the first ones may have an item more than the last ones."""
    start, end = (-(-len(items) * n // count) for n in (number, number + 1))
    return list(items[start:end])


def check_device(asked: str, processes: int) -> None:
    """UsageError if several processes on this machine cannot have this device."""
    import torch

    if processes > 1 and asked not in ("auto", "cpu", "cuda"):
        raise UsageError(
            f"{processes} processes cannot share the device '{asked}'.",
            repair="Use --device auto, one GPU for each process, or --device cpu.",
        )
    gpus = torch.cuda.device_count()
    if asked != "cpu" and gpus and processes > gpus:
        raise UsageError(
            f"{processes} processes need {processes} GPUs.",
            found=f"This machine has {gpus}.",
            repair=f"Start {gpus}, one for each GPU, or use --device cpu.",
        )
    if asked == "cuda" and not gpus:
        raise UsageError(
            f"The device '{asked}' cannot be used.",
            found="There is no GPU that torch can use.",
            repair="Use --device auto or cpu.",
        )


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "").strip()
    try:
        return int(text) if text else default
    except ValueError:
        raise UsageError(
            f"{name} is {text!r}, not a number.",
            found="Launchers of several processes set this environment variable.",
            repair="Unset it, or start the processes with torchrun, accelerate launch or srun.",
        ) from None


def _adopt_slurm(environment: MutableMapping[str, str]) -> None:
    """Translate the variables of `srun`, unless another launcher has set its own."""
    if environment.get(STEP_TASKS, "1") == "1" or environment.get("RANK"):
        return
    # "rack[1-2]n[03-08,11],other" begins with rack1n03.
    hosts = re.sub(r"\[(\d+)[^\]]*\]", r"\1", environment.get("SLURM_STEP_NODELIST", "localhost"))
    here = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    own_gpu = environment.get("SLURM_GPUS_PER_TASK")  # each task then sees its own alone
    found = {
        "RANK": environment.get("SLURM_PROCID", "0"),
        "WORLD_SIZE": environment[STEP_TASKS],
        "LOCAL_RANK": "0" if own_gpu else environment.get("SLURM_LOCALID", "0"),
        "LOCAL_WORLD_SIZE": "1" if own_gpu or not here else here.group(),
        "MASTER_ADDR": hosts.partition(",")[0],
        # The same for all tasks of a step, and probably of no other step on the same machine.
        "MASTER_PORT": str(20000 + int(environment.get("SLURM_JOB_ID", "0")) % 20000),
    }
    for name, value in found.items():
        environment.setdefault(name, value)


def _end_with_launcher() -> None:
    """Let no process outlive the one that watches it, torchrun or `flmm` itself."""
    if not os.environ.get("TORCHELASTIC_RUN_ID"):
        return
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)  # a step that is being trained is still saved
        time.sleep(60)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
