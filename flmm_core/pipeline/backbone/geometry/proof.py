"""Proves grids against single pixels: each lies, by its own coordinate, in its token's cell.

Independent of lines and grids that were fitted: only owners and coordinates count.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.geometry.grids import TOLERANCE, Grid
from flmm_core.pipeline.backbone.geometry.places import Places, Sites
from flmm_core.pipeline.backbone.geometry.refused import refuse

SLACK = 0.25
"""How far outside its cell a pixel may lie, in cells: resampling reaches over its own place."""
ROUNDING = 1 / 255
"""How exact a single coordinate is: ramps have 8 bits."""


def prove(grids: Sequence[Grid], places: Places) -> None:
    """Check every pixel and the mean of every token.

    Raises:
        GeometryRefused: A pixel lies outside its token's cell; a token's pixels lie off its center.
    """
    cells = _cells(grids, len(places.tile))
    for sites in places.sites:
        _prove(cells, sites)


def _cells(grids: Sequence[Grid], tokens: int) -> Tensor:
    """(M, 4) float32: center y, x, height and width of the cell of each token; NaN without one."""
    cells = torch.full((tokens, 4), torch.nan)
    for grid in grids:
        h, w = grid.tokens.shape
        y0, x0, y1, x1 = grid.box
        height, width = (y1 - y0) / h, (x1 - x0) / w
        y = y0 + (torch.arange(h) + 0.5) * height
        x = x0 + (torch.arange(w) + 0.5) * width
        cells[grid.tokens, 0] = y[:, None].expand(h, w).float()
        cells[grid.tokens, 1] = x.expand(h, w).float()
        cells[grid.tokens, 2:] = torch.tensor([height, width])
    return cells


def _prove(cells: Tensor, sites: Sites) -> None:
    tokens = len(cells)
    owned = sites.owner >= 0
    whole = torch.bincount(sites.owner[owned & ~sites.real], minlength=tokens) == 0
    seen = owned & sites.real
    owner = sites.owner[seen]
    count = torch.bincount(owner, minlength=tokens)
    for axis, values in enumerate((sites.y, sites.x)):
        size = cells[:, 2 + axis]
        off = (values[seen] - cells[owner, axis]) / size[owner]  # in cells
        outside = off.abs() > (0.5 + SLACK + ROUNDING / size)[owner]
        if outside.any() or off.isnan().any():
            far = int(outside.sum())
            raise refuse(f"{far} of {len(off)} pixels lie outside their token's cell.")
        mean = torch.bincount(owner, off.double(), minlength=tokens) / count
        worst = mean[whole & (count > 0)].abs()
        if len(worst) and float(worst.max()) > TOLERANCE + float(ROUNDING):
            raise refuse(f"A token's pixels lie {float(worst.max()):.2f} cells off its center.")
