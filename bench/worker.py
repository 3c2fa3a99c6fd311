"""A process that runs one case when it is told to: a line in names the way, a line out answers.

The first line is the case. Everything is JSON.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, TextIO

import torch
import transformers

from bench.cases import CaseSpec, build
from bench.ceilings import ceilings
from bench.memory import PeakMemory


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
    started = time.perf_counter()
    try:
        said = case.run(way)
        if device == "cuda":
            torch.cuda.synchronize()
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"failed": f"out of memory: {str(error).splitlines()[0]}"}
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak_bytes": memory.peak(), **said}


def _say(answers: TextIO, message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")
    answers.flush()


if __name__ == "__main__":
    main()
