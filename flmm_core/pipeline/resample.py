"""Moving maps between frames of the image, exactly: fractions of it, never rounded cells."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from flmm_core.pipeline.types import Box


def resample(
    maps: Tensor,
    source: Box,
    target: Box,
    size: tuple[int, int],
    *,
    outside: Literal["border", "zero"] = "border",
) -> Tensor:
    """Bilinear samples of maps at the cell centres of another frame.

    Like `interpolate(align_corners=False)`, but between any two boxes. Where the target has the
    source's own frame and size the maps come back untouched. Nothing is averaged: a target much
    coarser than the source sees only the cells next to its centres.

    Args:
        maps: (P, C, h, w) floating.
        source: (y0, x0, y1, x1), where the maps lie, in fractions of the image.
        target: Where the result is to lie, in the same fractions.
        size: (h2, w2) cells of the result.
        outside: What lies around the source: "border" repeats its outermost cells, "zero" fades
            to zero within half a cell, as if a ring of empty cells lay there.

    Returns:
        (P, C, h2, w2), of the maps' dtype.
    """
    if source == target and tuple(maps.shape[2:]) == tuple(size):
        return maps
    rows = _weights(maps.shape[2], source[0], source[2], target[0], target[2], size[0], outside)
    columns = _weights(maps.shape[3], source[1], source[3], target[1], target[3], size[1], outside)
    with torch.autocast(maps.device.type, enabled=False):  # places must not be rounded
        across = maps @ columns.to(maps).T  # (P, C, h, w2)
        return rows.to(maps) @ across  # (P, C, h2, w2)


def _weights(
    cells: int,
    start: float,
    end: float,
    target_start: float,
    target_end: float,
    count: int,
    outside: Literal["border", "zero"],
) -> Tensor:
    """(count, cells) float64: how much each source cell gives to each target cell, one axis."""
    centres = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    places = target_start + centres * (target_end - target_start)  # of the image
    cell = (places - start) / (end - start) * cells - 0.5  # in source cells
    if outside == "border":
        cell = cell.clamp(0, cells - 1)
    distance = (cell[:, None] - torch.arange(cells, dtype=torch.float64)).abs()
    return (1 - distance).clamp(min=0)  # (count, cells)
