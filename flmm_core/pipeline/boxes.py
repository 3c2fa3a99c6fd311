"""Bounding boxes of masks, in pixels."""

from __future__ import annotations

import torch
from torch import Tensor


def tight_boxes(masks: Tensor) -> Tensor:
    """The smallest box around each mask.

    Args:
        masks: (P, H, W) bool.

    Returns:
        (P, 4) int64 (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros for an empty mask.
    """
    x0, x1 = _span(occupied(masks, 1))
    y0, y1 = _span(occupied(masks, 2))
    return torch.stack([x0, y0, x1, y1], dim=-1)  # (P, 4)


def occupied(masks: Tensor, dim: int) -> Tensor:
    """`masks.any(dim)` of bool masks, whose side `dim` is not 0.

    A maximum of bytes is faster on a CPU.
    """
    return masks.view(torch.uint8).amax(dim) > 0


def _span(inside: Tensor) -> tuple[Tensor, Tensor]:
    """First index inside and the one after the last, (P,) each, of (P, n) bool."""
    n = inside.shape[1]
    place = torch.arange(n, device=inside.device)
    if not inside.shape[0]:
        return place.new_zeros(0), place.new_zeros(0)
    first = torch.where(inside, place, n).amin(dim=1)
    end = torch.where(inside, place + 1, 0).amax(dim=1)
    return torch.minimum(first, end), end
