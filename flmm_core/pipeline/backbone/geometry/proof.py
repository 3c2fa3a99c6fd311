"""Proves grids against single pixels: each lies, by its own coordinate, in its token's cell.

Independent of lines and grids that were fitted: only owners and coordinates count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.geometry.blocks import Blocks, Coordinate
from flmm_core.pipeline.backbone.geometry.grids import TOLERANCE, Grid
from flmm_core.pipeline.backbone.geometry.places import ROUNDING, Places
from flmm_core.pipeline.backbone.geometry.refused import refuse

SLACK = 0.25
"""How far outside its cell a pixel may lie, in cells: resampling reaches over its own place."""


def prove(grids: Sequence[Grid], places: Places) -> None:
    """Check every pixel and the mean of every token.

    Raises:
        GeometryRefused: A pixel lies outside its token's cell; a token's pixels lie off its center.
    """
    cells = _cells(grids, len(places.tile))
    for blocks in places.blocks:
        seen = (blocks.owner >= 0) & (blocks.real > 0)
        owner = blocks.owner[seen]
        for axis, coordinate in enumerate((blocks.y, blocks.x)):
            center, size = cells[owner, axis], cells[owner, 2 + axis]
            off = (
                torch.maximum(center - coordinate.low[seen], coordinate.high[seen] - center) / size
            )
            outside = ~(off <= 0.5 + SLACK + ROUNDING / size)
            if outside.any():
                raise refuse(
                    f"The pixels of {len(owner[outside].unique())} of {len(cells)} tokens lie "
                    f"outside their cells, up to {float(off.nan_to_num(torch.inf).max()):.2f} "
                    "cells from the center."
                )
            _prove_means(cells[:, axis], cells[:, 2 + axis], blocks, coordinate)


def _prove_means(center: Tensor, size: Tensor, blocks: Blocks, coordinate: Coordinate) -> None:
    """Of tokens that show no padding: (M,) centers and sizes along one axis."""
    owned = blocks.owner >= 0
    owner = blocks.owner[owned]

    def sums(values: Tensor) -> Tensor:
        return torch.bincount(owner, values[owned], minlength=len(center))

    count = sums(blocks.real)
    whole = (count > 0) & (count == sums(torch.full_like(blocks.real, blocks.elements)))
    off = ((sums(coordinate.total) / count - center) / size)[whole].abs()
    if len(off) and float(off.max()) > TOLERANCE:
        raise refuse(f"A token's pixels lie {float(off.max()):.2f} cells off its center.")


def _cells(grids: Sequence[Grid], tokens: int) -> Tensor:
    """(M, 4) float64: center y, x, height and width of the cell of each token; NaN without one."""
    cells = torch.full((tokens, 4), torch.nan, dtype=torch.float64)
    for grid in grids:
        h, w = grid.tokens.shape
        y0, x0, y1, x1 = grid.box
        height, width = (y1 - y0) / h, (x1 - x0) / w
        y = y0 + (torch.arange(h, dtype=torch.float64) + 0.5) * height
        x = x0 + (torch.arange(w, dtype=torch.float64) + 0.5) * width
        cells[grid.tokens, 0] = y[:, None].expand(h, w)
        cells[grid.tokens, 1] = x.expand(h, w)
        cells[grid.tokens, 2:] = torch.tensor([height, width], dtype=torch.float64)
    return cells
