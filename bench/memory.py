"""The most memory that some work needed above what was held before it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

STATUS, REFERENCES = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class PeakMemory:
    """Bytes above what was held at the start; by the operating system, or CUDA's allocator.

    On Linux the system's high-water mark is set back first: loading a model may have needed more
    than running it. Elsewhere the mark is that of the whole process (`ru_maxrss`).

    Args:
        device: "cpu" or "cuda".
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.start = torch.cuda.memory_allocated()
        elif _set_back():
            self.start = _status("VmRSS")
        else:
            self.start = _highest()

    def peak(self) -> int:
        """The highest since the start, above the start."""
        if self.device == "cuda":
            return torch.cuda.max_memory_allocated() - self.start
        return (_status("VmHWM") if STATUS.is_file() else _highest()) - self.start


def _set_back() -> bool:
    try:
        REFERENCES.write_text("5")
    except OSError:
        return False
    return True


def _status(name: str) -> int:
    line = next(x for x in STATUS.read_text().splitlines() if x.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def _highest() -> int:
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most * (1 if sys.platform == "darwin" else 1024)
