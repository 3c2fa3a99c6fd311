"""How many processes read images, where the user leaves it open.

While a model runs on an accelerator, the CPU is free to read and prepare what comes next. While
the model runs on the CPU itself, it keeps all cores busy, and reading is a small part of the time:
processes beside it only take cores away (`python -m bench.loading` measures both).
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from flmm_core.config import Workers

MOST = 8
"""More processes than this read faster than any model on one accelerator computes."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux says how much of its CPUs a container may use, in microseconds of a period."""


def usable_cpus() -> int:
    """CPUs that this process may use: those it is bound to, within its container's quota."""
    if hasattr(os, "sched_getaffinity"):
        bound = len(os.sched_getaffinity(0))
    else:
        bound = os.cpu_count() or 1
    try:
        quota, period = QUOTA.read_text(encoding="ascii").split()
        return max(1, min(bound, int(quota) // int(period)))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return bound


def count_workers(workers: Workers, device: torch.device) -> int:
    """The number of processes that read images, 0 for none but the main one.

    Args:
        workers: As asked for. "auto" is 0 where the model runs on the CPU; else all usable CPUs
            but one, shared by the processes that `torchrun` starts on this machine, 1 to `MOST`.
        device: Where the model runs.
    """
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return 0
    fellows = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST, usable_cpus() // fellows - 1))
