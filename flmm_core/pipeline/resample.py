"""Exact resampling of maps between frames: fractions of the image, never rounded cells."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

Box = tuple[float, float, float, float]
"""(y0, x0, y1, x1) in fractions of the image's height and width."""
WHOLE_IMAGE: Box = (0.0, 0.0, 1.0, 1.0)

FEW_CELLS = 256
"""A side up to which matrix products are faster than torch's own way on a CPU, whatever the size
of the result."""


def resample(
    maps: Tensor,
    source: Box,
    target: Box,
    size: tuple[int, int],
    *,
    outside: Literal["border", "zero"] = "border",
) -> Tensor:
    """Bilinear samples of maps at the cell centers of another frame.

    Like `interpolate(align_corners=False)`, but between any two boxes. No antialiasing: a target
    much coarser than the source samples only the cells next to its centers.

    Args:
        maps: (P, C, h, w) floating.
        source: (y0, x0, y1, x1), the box of the maps in fractions of the image.
        target: The box of the result, in the same fractions.
        size: (h2, w2) cells of the result.
        outside: Padding around the source: "border" repeats its outermost cells, "zero" fades
            to zero within half a cell.

    Returns:
        (P, C, h2, w2), in the dtype of the maps; the maps themselves if nothing changes.
    """
    if source == target and tuple(maps.shape[2:]) == tuple(size):
        return maps
    border = outside == "border"
    rows = _weights(maps.shape[2], source[::2], target[::2], size[0], border)
    columns = _weights(maps.shape[3], source[1::2], target[1::2], size[1], border)
    with torch.autocast(maps.device.type, enabled=False):  # positions must not be rounded
        across = maps @ columns.to(maps).T  # (P, C, h, w2)
        return rows.to(maps) @ across  # (P, C, h2, w2)


def _weights(
    cells: int, source: tuple[float, ...], target: tuple[float, ...], count: int, border: bool
) -> Tensor:
    """(count, cells) float64: the weight of each source cell in each target cell, on one axis."""
    (start, end), (target_start, target_end) = source, target
    centers = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    positions = target_start + centers * (target_end - target_start)  # of the image
    cell = (positions - start) / (end - start) * cells - 0.5  # in source cells
    if border:
        cell = cell.clamp(0, cells - 1)
    distance = (cell[:, None] - torch.arange(cells, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)  # (count, cells)


def resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(P, h, w) -> (P, *size), bilinear, cell edges aligned."""
    return bilinear(logits[:, None], size)[:, 0]


def resize_twice(
    logits: Tensor, first: tuple[int, int], second: tuple[int, int], size: tuple[int, int]
) -> Tensor:
    """Resize to `first`, crop or pad with zeros to `second`, and resize that to `size`.

    Both are one product per axis, so that neither they nor their gradients take memory and time
    for `first` and `second`, which can be far larger than both ends.

    Args:
        logits: (P, h, w) floating.
        first: (h1, w1) cells.
        second: (h2, w2) cells, from the top left of the first.
        size: (H, W) cells of the result.

    Returns:
        (P, H, W), in the dtype of the logits.
    """
    parts = zip(logits.shape[1:], first, second, size, strict=True)
    rows, columns = (_twice_weights(*part).to(logits) for part in parts)
    with torch.autocast(logits.device.type, enabled=False):
        return rows @ (logits @ columns.T)


@lru_cache(maxsize=256)
def _twice_weights(cells: int, first: int, second: int, count: int) -> Tensor:
    """(count, cells) float32 of `resize_twice`, on one axis."""
    whole, kept = (0.0, 1.0), min(first, second)
    with torch.inference_mode(False):  # it is kept, and a later call may be trained
        before = _weights(cells, whole, whole, first, border=True)[:kept]
        after = _weights(second, whole, whole, count, border=True)[:, :kept]
        return (after @ before).float()


def bilinear(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """(P, C, h, w) -> (P, C, *size), bilinear, cell edges aligned."""
    h, w = maps.shape[2:]
    is_trained = maps.requires_grad and torch.is_grad_enabled() and maps.numel() > 0
    pays = max(h, w) <= FEW_CELLS or (h <= size[0] and w <= size[1])
    pays &= maps.device.type == "cpu" and maps.is_contiguous()  # channels last is vectorized
    if is_trained and pays:
        resized: Tensor = _Bilinear.apply(maps, size)
        return resized
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)


class _Bilinear(torch.autograd.Function):
    """`interpolate`, with matrix products for its backward pass: torch's own one is scalar code
    on a CPU, which takes 3 to 20 times as long.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, size: tuple[int, int]) -> Tensor:
        ctx.cells = maps.shape[2:]
        return F.interpolate(maps, size, mode="bilinear", align_corners=False)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        rows, columns = map(_whole_weights, ctx.cells, grad.shape[2:])
        with torch.autocast(grad.device.type, enabled=False):
            across = grad.float() @ columns  # (P, C, H, w)
            return (rows.T @ across).to(grad.dtype), None


@lru_cache(maxsize=256)
def _whole_weights(cells: int, count: int) -> Tensor:
    """(count, cells) float32 as `_weights`, for the whole image."""
    with torch.inference_mode(False):
        return _weights(cells, (0.0, 1.0), (0.0, 1.0), count, border=True).float()


def resize_truth(truth: Tensor, size: tuple[int, int], *, nearest: bool = False) -> Tensor:
    """Bring masks to the size of some logits.

    Args:
        truth: (P, H, W) bool or 0/1.
        size: (h, w).
        nearest: As the original F-LMM does, which can erase small objects; otherwise every cell
            gets the fraction of its area that the object covers.

    Returns:
        (P, h, w) float32, 0 to 1.
    """
    if truth.shape[-2:] == size:
        return truth.float()
    mode = "nearest" if nearest else "area"
    return F.interpolate(truth.float()[:, None], size, mode=mode)[:, 0]  # (P, h, w)
