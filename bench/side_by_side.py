"""Runs a case in several ways in turns, one process a way, and takes medians.

In turns, so that a disturbance of the machine meets all ways. On a GPU one process runs all ways
with the same weights: its allocator counts exactly, and a card may not hold the weights thrice.

On a CPU memory is looked at afterwards, in processes whose allocator gives back at once what is
freed: else what the system sees depends on what was freed before. That costs time, so none is taken
there; and the last run counts, since libraries keep buffers from the first.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from bench.cases import CaseSpec

GIVES_BACK = {"MALLOC_MMAP_THRESHOLD_": str(64 << 10), "MALLOC_TRIM_THRESHOLD_": "0"}
"""For glibc: what is larger than 64 KiB is mapped, and unmapped when it is freed."""

NOTHING: Mapping[str, str] = {}


class Worker:
    """A process that has built a case and waits."""

    def __init__(self, spec: CaseSpec, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        self._send(spec.to_dict())

    def wait(self) -> Self:
        """Until the case is built."""
        self._receive("building")
        return self

    def ask(self, order: Any) -> dict[str, Any]:
        """Send one line, wait for one."""
        self._send(order)
        return self._receive(order)

    def _send(self, order: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def _receive(self, order: Any) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            # an error of ours is on the screen; without one the system has ended it for its memory
            raise RuntimeError(f"a worker ended with status {self._process.wait()} at {order!r}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is not None:
            self._process.kill()
        self._process.communicate()


@dataclass
class Measured:
    """One way's runs.

    Attributes:
        seconds: Of each run.
        peak_bytes: The most memory that the last run needed above what was held before.
        said: What the runs said beside that.
        failed: Why there are no runs.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0
    said: dict[str, Any] = field(default_factory=dict)
    failed: str | None = None

    @property
    def median(self) -> float:
        """Seconds of the middle run."""
        return statistics.median(self.seconds)

    def take(self, answer: Mapping[str, Any]) -> None:
        """One more run."""
        answer = dict(answer)
        self.failed = answer.pop("failed", self.failed)
        if self.failed is None:
            self.seconds.append(answer.pop("seconds"))
            self.peak_bytes = answer.pop("peak_bytes")
            self.said = answer

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        if self.failed is not None:
            return {"failed": self.failed}
        times = [round(value, 4) for value in self.seconds]
        median = round(self.median, 4)
        return {"seconds": times, "median": median, "peak_bytes": self.peak_bytes, **self.said}


def side_by_side(
    spec: CaseSpec, rounds: Mapping[str, int]
) -> tuple[dict[str, Measured], dict[str, float]]:
    """Each way's runs, and the machine's ceilings as its first worker found them.

    Args:
        spec: The case.
        rounds: How often to run it in each way; in every round in this order.
    """
    found, ways = {way: Measured() for way in rounds}, list(rounds)
    shared = spec.device == "cuda"
    with _Workers(spec, ways, shared) as workers:
        limits = workers.of[ways[0]].ask("ceilings")
        for turn in range(max(rounds.values())):
            for way, measured in found.items():
                if measured.failed is None and turn < rounds[way]:
                    measured.take(workers.of[way].ask(way))
    if not shared:
        with _Workers(spec, ways, shared, GIVES_BACK) as workers:
            for way, measured in found.items():
                for _ in range(min(rounds[way], 2)):
                    measured.peak_bytes = workers.of[way].ask(way)["peak_bytes"]
    return found, limits


class _Workers:
    def __init__(
        self,
        spec: CaseSpec,
        ways: Sequence[str],
        shared: bool,
        environment: Mapping[str, str] = NOTHING,
    ) -> None:
        started = [Worker(spec, environment) for _ in (ways[:1] if shared else ways)]
        self.all = [worker.wait() for worker in started]  # they build at the same time
        self.of = {way: self.all[0 if shared else place] for place, way in enumerate(ways)}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        for worker in self.all:
            worker.__exit__(*error)
