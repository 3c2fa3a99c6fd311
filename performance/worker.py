"""A process that builds one case and runs it on request.

The first line in is the case, each further line a way; every answer is a line of JSON.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import Any, TextIO

import torch
import transformers

from performance.alternate import Case, Workload

BURST, LONG = 9, 0.5
"""Short work is repeated up to so many times or seconds, and the median counts: a single run would
measure what another process has left in the processor's caches."""

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Serve until the input ends."""
    with os.fdopen(os.dup(1), "w", buffering=1) as answers:
        os.dup2(2, 1)  # whatever else is printed must not come between
        transformers.logging.disable_progress_bar()
        case = Case.from_json(sys.stdin.readline())
        try:
            workload = case.build()
        except torch.OutOfMemoryError as error:
            _refuse(error, answers)
            return
        print(json.dumps({"ready": True}), file=answers)
        for line in sys.stdin:
            print(json.dumps(measured(workload, line.strip(), case.device)), file=answers)


def _refuse(error: torch.OutOfMemoryError, answers: TextIO) -> None:
    """The model itself does not fit: so answer everything."""
    failed = json.dumps({"failed": _out_of_memory(error)})
    print(failed, file=answers)
    for _ in sys.stdin:
        print(failed, file=answers)


def _out_of_memory(error: torch.OutOfMemoryError) -> str:
    return f"out of memory: {str(error).splitlines()[0]}"


def measured(workload: Workload, way: str, device: str) -> dict[str, Any]:
    """Median seconds of one run, peak memory in bytes above what was held before, and facts."""
    taken: list[float] = []
    result = None
    try:
        workload.prepare(way)
        held = _start_counting(device)
        while not taken or (len(taken) < BURST and sum(taken) < LONG):
            result = None  # the previous result is not kept beside the next
            started = time.perf_counter()
            result = workload.run(way)
            if device == "cuda":
                torch.cuda.synchronize()
            taken.append(time.perf_counter() - started)
    except torch.OutOfMemoryError as error:
        torch.cuda.empty_cache()
        return {"failed": _out_of_memory(error)}
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else _highest()
    facts = workload.facts(result)
    return {"seconds": statistics.median(taken), "peak_bytes": peak - held, "facts": facts}


def _start_counting(device: str) -> int:
    """Reset the peak, and return the bytes that are held now.

    Where the system's peak cannot be reset (outside Linux) it is that of the whole process.
    """
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    try:
        CLEAR.write_text("5")
    except OSError:
        return _highest()
    return _status("VmRSS")


def _highest() -> int:
    if STATUS.is_file():
        return _status("VmHWM")
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)


def _status(name: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    main()
