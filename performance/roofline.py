"""The least time that a forward can take on this machine, from what it can do at best.

Both limits are measured, since a card's clock and memory differ from its data sheet: products of
large square matrices, and copying a large tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

SIDE = {"cuda": 8192, "cpu": 1024}
"""Of the matrices, and of the tensor that is copied."""
TIMES = 5


@dataclass(frozen=True)
class Machine:
    """Operations and bytes per second."""

    operations: float
    bytes: float


@cache
def machine(device: str, dtype: torch.dtype) -> Machine:
    """What a device reaches in a dtype."""
    side = SIDE[device]
    a, b = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(2))
    product, copied = torch.empty_like(a), torch.empty_like(a)
    multiply = _fastest(lambda: torch.mm(a, b, out=product), device)
    copy = _fastest(lambda: copied.copy_(a), device)
    return Machine(2 * side**3 / multiply, 2 * a.nbytes / copy)  # a copy reads and writes


def _fastest(work: Callable[[], Any], device: str) -> float:
    taken = []
    for _ in range(TIMES):
        started = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken)


def least_seconds(forward: Callable[[], Any], model: torch.nn.Module) -> dict[str, float]:
    """The operations of a forward, and the least time for them or for reading all weights once.

    Embeddings, of which a forward reads a few rows, count as read: at most 5 % of the weights.
    """
    weight = next(model.parameters())
    best = machine(weight.device.type, weight.dtype)
    with FlopCounterMode(display=False) as counter:
        forward()
    operations = counter.get_total_flops()
    read = sum(each.nbytes for each in model.parameters())
    least = max(operations / best.operations, read / best.bytes)
    return {"operations": operations, "least_seconds": least}
