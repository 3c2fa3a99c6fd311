"""Muon in float32.

torch's own orthogonalizes in bfloat16, which a processor without units for it multiplies many times
as slowly as float32. There it took two fifths of a step of these tiny models.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` with the learning rates of its `adjust_lr_fn="original"`."""

    def __init__(self, matrices: list[Tensor], lr: float, weight_decay: float = 0) -> None:
        super().__init__(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="original")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """One step of all matrices that have a gradient."""
        loss = None if closure is None else closure()
        for group in self.param_groups:
            momentum = group["momentum"]
            for matrix in group["params"]:
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                buffer = state["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
                update = orthogonal(
                    matrix.grad.lerp(buffer, momentum), group["ns_coefficients"], group["ns_steps"]
                )
                rate = group["lr"] * math.sqrt(max(1, matrix.shape[0] / matrix.shape[1]))
                matrix.mul_(1 - group["lr"] * group["weight_decay"]).sub_(rate * update)
        return loss


def orthogonal(matrix: Tensor, coefficients: tuple[float, float, float], steps: int) -> Tensor:
    """The nearest orthogonal matrix, about: all singular values become about 1.

    By the Newton-Schulz iteration of Jordan et al. (2024).
    """
    high = matrix.shape[0] > matrix.shape[1]
    found: Tensor = matrix.T if high else matrix
    found = found / found.norm().clamp(min=1e-7)
    a, b, c = coefficients
    for _ in range(steps):
        gram = found @ found.T
        found = a * found + (b * gram + c * gram @ gram) @ found
    return found.T if high else found
