"""What this machine can do at best: measured, not looked up."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

SIDES = {"cpu": 2048, "cuda": 8192}
COPIED = {"cpu": 256 << 20, "cuda": 4 << 30}
"""Bytes; far more than any cache holds."""


def ceilings(dtype: str, device: str) -> dict[str, float]:
    """Operations a second of a large matrix product, bytes a second of a large copy."""
    side = SIDES[device]
    a = torch.randn(side, side, device=device).to(getattr(torch, dtype))
    source = torch.zeros(COPIED[device], dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "matmul_flops": 2 * side**3 / _best(lambda: a @ a, device),
        # every byte is read and written
        "copy_bytes": 2 * len(source) / _best(lambda: target.copy_(source), device),
    }


def _best(work: Callable[[], object], device: str, repeats: int = 5) -> float:
    work()
    seconds = []
    for _ in range(repeats):
        _wait(device)
        started = time.perf_counter()
        work()
        _wait(device)
        seconds.append(time.perf_counter() - started)
    return min(seconds)


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
