"""The place of each token on the image, from those of the pixel elements that it owns.

Within one tile the processor resamples affinely, so a line through the measured coordinates
reaches into padding and averages the rounding to 8 bits away. Pixel tensors of another layout, such
as one patch a row, are read element by element.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.geometry.owners import SEVERAL
from flmm_core.pipeline.backbone.geometry.ramps import Elements
from flmm_core.pipeline.backbone.geometry.refused import refuse

CHANNELS = 3
EDGE = 0.15
"""The part of a tile at each end that is not fitted: resampling clamps there."""


@dataclass(frozen=True)
class Sites:
    """Pixels, or single elements: (n,) tensors each.

    `owner` is an image token, or negative; `real` is false in padding.
    """

    owner: Tensor
    real: Tensor
    y: Tensor
    x: Tensor


@dataclass(frozen=True)
class Line:
    """coordinate = start + step · (pixel's place in its tile)."""

    start: float
    step: float


@dataclass(frozen=True)
class Tile:
    """Where a tile lies: `key` and `index` of the pixel tensor, and a line for each axis."""

    key: str
    index: int
    y: Line
    x: Line


@dataclass
class Places:
    """Of M image tokens.

    Attributes:
        center: (M, 2) float64, y and x in fractions of the image; NaN if not known.
        size: (M, 2) float64 of its cell.
        tile: (M,) int64; -1 if not known.
        tiles: Those that show a part of the image.
        sites: What the grids are proved with.
    """

    center: Tensor
    size: Tensor
    tile: Tensor
    tiles: list[Tile] = field(default_factory=list)
    sites: list[Sites] = field(default_factory=list)

    @classmethod
    def unknown(cls, tokens: int) -> Places:
        nowhere = torch.full((tokens, 2), torch.nan, dtype=torch.float64)
        return cls(nowhere, nowhere.clone(), torch.full((tokens,), -1))

    def add(self, key: str, owner: Tensor, elements: Elements) -> None:
        """Place the tokens that own elements of one pixel tensor; `owner` is of its shape.

        Raises:
            GeometryRefused: A tile is no upright resampling of the image.
        """
        if not self._add_tiles(key, owner, elements):
            self._add_elements(owner, elements)

    def _add_tiles(self, key: str, owner: Tensor, elements: Elements) -> bool:
        shape = owner.shape
        axis = next((a for a in (-3, -1) if len(shape) >= 4 and shape[a] == CHANNELS), None)
        tokens = len(self.tile)
        if axis is None or shape[:-3].numel() >= tokens > 1:  # the latter has one patch a row
            return False
        planes = [_planes(each, axis) for each in (owner, elements.real, elements.y, elements.x)]
        owners, real = planes[0], planes[1].any(1)
        same = (owners[:, :1] == owners).all(1)
        own = torch.where(same, owners[:, 0], SEVERAL)  # (tiles, h, w)
        y, x = planes[2].mean(1), planes[3].mean(1)
        counts = torch.stack([_sums(each.flatten(), None, tokens) for each in own])  # (tiles, M)
        if ((counts > 0).sum(0) > 1).any():
            return False
        for number in range(len(own)):
            if not (own[number] != -1).any():
                continue
            lines = _lines(real[number], y[number], x[number])
            if lines is None:
                continue
            self.tiles.append(Tile(key, number, *lines))
            self._place(own[number], counts[number], lines, len(self.tiles) - 1)
        self.sites.append(Sites(own.flatten(), real.flatten(), y.flatten(), x.flatten()))
        return True

    def _place(self, own: Tensor, count: Tensor, lines: tuple[Line, Line], tile: int) -> None:
        """Tokens by the mean place of their pixels in a tile."""
        has = count > 0
        h, w = own.shape
        rows = torch.arange(h, dtype=torch.float64)[:, None].expand(h, w).flatten()
        columns = torch.arange(w, dtype=torch.float64).expand(h, w).flatten()
        for axis, (at, line) in enumerate(zip((rows, columns), lines, strict=True)):
            mean, spread = _mean_and_spread(own.flatten(), at, count)
            self.center[has, axis] = line.start + line.step * mean[has]
            self.size[has, axis] = line.step * (spread[has] + 1).sqrt()
        self.tile[has] = tile

    def _add_elements(self, owner: Tensor, elements: Elements) -> None:
        """Tokens by the mean coordinate of their elements."""
        flat = Sites(
            owner.flatten(), elements.real.flatten(), elements.y.flatten(), elements.x.flatten()
        )
        own = torch.where(flat.real, flat.owner, -1)
        count = _sums(own, None, len(self.tile))
        has = count > 0
        for axis, at in enumerate((flat.y, flat.x)):
            mean, spread = _mean_and_spread(own, at.double(), count)
            self.center[has, axis] = mean[has]
            self.size[has, axis] = spread[has].sqrt()
        self.tile[has] = 0
        self.sites.append(flat)


def _planes(values: Tensor, axis: int) -> Tensor:
    """(..., 3, h, w) or (..., h, w, 3) -> (tiles, 3, h, w)."""
    moved = values.movedim(axis, -3)
    return moved.reshape(-1, *moved.shape[-3:])


def _sums(owner: Tensor, values: Tensor | None, tokens: int) -> Tensor:
    """(tokens,) sums of values, or counts, over the sites of each owner; negative ones are none."""
    return torch.bincount((owner + 2).clamp_(min=0), values, minlength=tokens + 2)[2:]


def _mean_and_spread(owner: Tensor, values: Tensor, count: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and the square of the width of a uniform distribution of the same variance."""
    mean = _sums(owner, values, len(count)) / count
    square = _sums(owner, values**2, len(count)) / count
    return mean, 12 * (square - mean**2).clamp(min=0)


def _lines(real: Tensor, y: Tensor, x: Tensor) -> tuple[Line, Line] | None:
    """How a tile, (h, w) each, lies on the image; None if it shows only padding.

    Raises:
        GeometryRefused: It is no upright resampling.
    """
    found = []
    for axis, values in ((1, y), (0, x)):
        count = real.sum(axis)
        at = (count > 0).nonzero().flatten()
        if len(at) < 2:
            return None
        line = _fit(at.double(), ((values * real).sum(axis)[at] / count[at]).double())
        if not line.step > 0:
            raise refuse("A tile is no upright resampling of the image.")
        found.append(line)
    return found[0], found[1]


def _fit(at: Tensor, values: Tensor) -> Line:
    """The line through the middle part."""
    low, high = at[0], at[-1]
    cut = EDGE * (high - low)
    inner = (at >= low + cut) & (at <= high - cut)
    if inner.sum() >= 3:
        at, values = at[inner], values[inner]
    away = at - at.mean()
    step = float((away * (values - values.mean())).sum() / (away**2).sum())
    return Line(float(values.mean() - step * at.mean()), step)
