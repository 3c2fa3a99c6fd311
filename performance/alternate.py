"""Run a workload in several ways in turns, one process per way, and take medians.

Taking turns exposes all ways to the same disturbances of the machine. On a GPU, one process runs
all ways with the same weights: its allocator counts exactly, and the card may not hold the weights
three times.

On a CPU, memory is measured afterwards, in processes whose allocator returns freed memory at once;
otherwise the peak depends on what was freed before. That costs time, so nothing is timed there.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from typing import Any, Self

BARE, OURS, ORIGINAL = "bare", "ours", "original-way"

RETURNS_FREED = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "MALLOC_TRIM_THRESHOLD_": "0"}
"""For glibc: blocks above 64 KiB are mapped, and unmapped when freed."""


@dataclass(frozen=True)
class Case:
    """One case in plain values, so that another process can build it.

    Attributes:
        workload: "module:Class" of the `Workload`.
        ways: The ways to run it in.
        model: A key of `performance.models.REAL`, "medium", or a plugin, for its tiny model.
        tokens: S, the length of the sequence; 0 leaves it to the image.
        sam: "tiny", or an official size with random weights.
        dtype: Of the frozen weights; with bfloat16 SAM encodes in it, too.
        device: "cpu" or "cuda".
        phrases: Per image.
        images: Per batch.
    """

    workload: str
    ways: tuple[str, ...]
    model: str = ""
    tokens: int = 0
    sam: str = "tiny"
    dtype: str = "float32"
    device: str = "cpu"
    phrases: int = 8
    images: int = 1

    @classmethod
    def from_json(cls, line: str) -> Self:
        """The case that `to_json` wrote."""
        values = json.loads(line)
        return cls(**values | {"ways": tuple(values["ways"])})

    def to_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))

    def build(self) -> Workload:
        """The workload, ready to run."""
        module, _, name = self.workload.partition(":")
        workload: Workload = getattr(import_module(module), name)(self)
        return workload


class Workload(ABC):
    """Work that can be done in several ways.

    Args:
        case: What to build.
    """

    @abstractmethod
    def __init__(self, case: Case) -> None: ...

    @abstractmethod
    def prepare(self, way: str) -> None:
        """Before each run, not timed: switch modules, and warm up the first time."""

    @abstractmethod
    def run(self, way: str) -> Any:
        """Do the work once; this is timed."""

    @abstractmethod
    def facts(self, result: Any) -> dict[str, Any]:
        """What the tables need beside time and memory, from the result of a run."""


@dataclass(frozen=True)
class Runs:
    """The runs in one way.

    Attributes:
        seconds: Of each run.
        peak_bytes: The most memory that the last run held above what was held before.
        facts: From `Workload.facts`.
        failed: Why there are no figures.
    """

    seconds: tuple[float, ...] = ()
    peak_bytes: int = 0
    facts: Mapping[str, Any] = field(default_factory=dict)
    failed: str | None = None

    @property
    def median(self) -> float:
        """Seconds; not a number if it failed."""
        return math.nan if self.failed else statistics.median(self.seconds)

    def add(self, answer: Mapping[str, Any]) -> Runs:
        """With the answer of a worker."""
        if self.failed or "failed" in answer:
            return Runs(failed=self.failed or answer["failed"])
        return Runs((*self.seconds, answer["seconds"]), answer["peak_bytes"], answer["facts"])


@dataclass(frozen=True)
class Comparison:
    """A case with its runs by way."""

    case: Case
    runs: Mapping[str, Runs]

    @property
    def facts(self) -> Mapping[str, Any]:
        """Of any way that ran."""
        return next((runs.facts for runs in self.runs.values() if not runs.failed), {})

    def median(self, way: str) -> float:
        """Seconds; not a number where there are none."""
        return self.runs[way].median if way in self.runs else math.nan

    def ratio(self, way: str, other: str) -> float:
        """How many times as long one way takes as another."""
        return self.median(way) / self.median(other)

    def peak(self, way: str) -> float:
        """Bytes; not a number where there are none."""
        return math.nan if self.runs[way].failed else self.runs[way].peak_bytes


def compare_all(cases: Sequence[Case], repeats: int, until: float) -> list[Comparison]:
    """Compare the ways of every case.

    Args:
        cases: What to run.
        repeats: How often in each way.
        until: Cases that have not begun at this `time.monotonic()` are skipped.
    """
    found = []
    for case in cases:
        name = f"{case.workload}: {case.model} {case.sam} {case.dtype} {case.tokens or ''}"
        late = time.monotonic() > until
        print(f"Skipped, out of time: {name}" if late else name, file=sys.stderr, flush=True)
        if not late:
            found.append(compare(case, repeats))
    return found


def compare(case: Case, repeats: int) -> Comparison:
    """The runs of a case in each way, in turns."""
    runs = dict.fromkeys(case.ways, Runs())
    with _workers(case) as workers:
        for _ in range(repeats):
            for way in case.ways:
                if not runs[way].failed:
                    runs[way] = runs[way].add(workers[way].ask(way))
    if case.device == "cpu":
        with _workers(case, RETURNS_FREED) as workers:
            for way, found in runs.items():
                for _ in range(2):  # libraries keep buffers from the first run
                    answer = workers[way].ask(way)
                runs[way] = Runs(found.seconds, answer["peak_bytes"], found.facts)
    return Comparison(case, runs)


@contextmanager
def _workers(case: Case, environment: Mapping[str, str] | None = None) -> Any:
    """A worker per way; on a GPU the same one for all."""
    with ExitStack() as stack:
        count = 1 if case.device == "cuda" else len(case.ways)
        started = [stack.enter_context(_Worker(case, environment or {})) for _ in range(count)]
        for worker in started:  # they build at the same time
            worker.receive("building")
        yield {way: started[place % count] for place, way in enumerate(case.ways)}


class _Worker:
    """A process of `performance.worker`."""

    def __init__(self, case: Case, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "performance.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._send(case.to_json())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()

    def ask(self, way: str) -> dict[str, Any]:
        """Run once."""
        self._send(way)
        return self.receive(way)

    def receive(self, doing: str) -> dict[str, Any]:
        """The next answer."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:  # the worker's error is on the screen, unless the system ended it
            raise RuntimeError(f"a worker ended with status {self._process.wait()} while {doing}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
