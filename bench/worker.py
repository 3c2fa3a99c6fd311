"""A process that runs one case when it is told to: a line in names the way, a line out answers.

The first line is the case. Everything is JSON.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from typing import Any, TextIO

import torch
import transformers

from bench.cases import CaseSpec, build
from bench.ceilings import ceilings
from bench.memory import PeakMemory

BURST, LONG = 9, 0.5
"""What takes milliseconds runs so many times, or seconds, in a row, and the median counts: a single
run would measure what another process has left in the processor's caches."""


def main() -> None:
    """Serve until the input ends."""
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)  # nobody else's printing may come between
        transformers.logging.disable_progress_bar()
        spec = CaseSpec(**json.loads(sys.stdin.readline()))
        case = build(spec.to_dict())
        _say(answers, {"ready": True})
        for line in sys.stdin:
            order = json.loads(line)
            if order == "ceilings":
                _say(answers, ceilings(spec.dtype, spec.device))
                continue
            case.prepare(order)
            _say(answers, _measured(case, order, spec.device, PeakMemory(spec.device)))


def _measured(case: Any, way: str, device: str, memory: PeakMemory) -> dict[str, Any]:
    taken: list[float] = []
    while not taken or (len(taken) < BURST and sum(taken) < LONG):
        started = time.perf_counter()
        try:
            said = case.run(way)
            if device == "cuda":
                torch.cuda.synchronize()
        except torch.OutOfMemoryError as error:
            torch.cuda.empty_cache()
            return {"failed": f"out of memory: {str(error).splitlines()[0]}"}
        taken.append(time.perf_counter() - started)
    return {"seconds": statistics.median(taken), "peak_bytes": memory.peak(), **said}


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
