"""Gradients over all processes: the sum of each one's part of the loss of a step."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flmm_core.world import World


def sum_gradients(world: World, weights: Sequence[Tensor], figures: Tensor) -> Tensor:
    """Replace the gradient of each weight by its sum over all processes, in one exchange.

    A weight without a gradient in any process keeps none, so that the optimizer leaves it alone
    as in a single process.

    Args:
        figures: (F,), of the dtype of the weights.

    Returns:
        Their sum over all processes.
    """
    if world.size == 1:
        return figures
    grads = [weight.grad for weight in weights]
    known = torch.tensor([grad is not None for grad in grads]).to(figures)
    parts = [
        torch.zeros_like(weight) if grad is None else grad
        for weight, grad in zip(weights, grads, strict=True)
    ]
    flat = torch.cat([*(part.flatten() for part in parts), known, figures])
    world.sum_(flat)
    sizes = [weight.numel() for weight in weights]
    *summed, known, figures = flat.split([*sizes, len(known), len(figures)])
    for weight, grad, count in zip(weights, summed, known.tolist(), strict=True):
        weight.grad = grad.view_as(weight) if count else None
    return figures
