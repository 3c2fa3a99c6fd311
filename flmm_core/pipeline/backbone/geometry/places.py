"""The place of each token on the image, from those of the blocks that it owns.

Within one tile the processor resamples affinely, so a line through the measured coordinates
reaches into padding and averages the rounding to 8 bits away. Pixel tensors of another layout, such
as one patch a row, are read element by element.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.geometry.blocks import Blocks
from flmm_core.pipeline.backbone.geometry.refused import refuse

EDGE = 0.15
"""The part of a tile at each end that is not fitted: resampling clamps there."""
STRAIGHT = 0.25
"""How far from a line a block may lie, in blocks."""
ROUNDING = 1 / 255
"""How exact a single coordinate is: ramps have 8 bits."""
DITHERED = 2 * ROUNDING**2
"""By how much dithered ramps can make the square of a width too large.

A value between two levels is one of them, at random: its variance is f (1 - f) levels², 1/6 in the
mean of all f, and `_mean_and_width` takes 12 times the variance.
"""


@dataclass(frozen=True)
class Line:
    """coordinate = start + step · (pixel's place in its tile)."""

    start: float
    step: float


Lines = dict[int, tuple[Line, ...]]
"""By tile: one line for rows and one for columns, or none if it shows only padding."""


@dataclass
class Places:
    """Of M image tokens.

    Attributes:
        center: (M, 2) float64, y and x in fractions of the image; NaN if it reads no pixel.
        size: (M, 2) float64 of its cell.
        excess: (M,) float64, by how much the square of `size` can be too large.
        tile: (M,) int64; -1 if it reads no pixel.
        blocks: Those that the tokens own; they prove the grids.
    """

    center: Tensor
    size: Tensor
    excess: Tensor
    tile: Tensor
    blocks: list[Blocks] = field(default_factory=list)

    @classmethod
    def unknown(cls, tokens: int) -> Places:
        nowhere = torch.full((tokens, 2), torch.nan, dtype=torch.float64)
        excess = torch.zeros(tokens, dtype=torch.float64)
        return cls(nowhere, nowhere.clone(), excess, torch.full((tokens,), -1))

    def add(self, blocks: Blocks, lines: Lines | None) -> None:
        """Place the owners of blocks; `owner` counts image tokens, `lines` are `tile_lines`.

        Raises:
            GeometryRefused: A token sees only padding of which nothing says where it lies.
        """
        if lines is None:
            self._add_elements(blocks)
        else:
            table = _table(blocks, len(self.tile))
            for tile, both in lines.items():
                self._add_tile(blocks, tile, both, table[tile])
        owned = torch.zeros(len(self.tile), dtype=torch.bool)
        owned[blocks.owner[blocks.owner >= 0]] = True
        if lost := int((owned & self.center.isnan().any(1)).sum()):
            raise refuse(f"{lost} image tokens see only padding, and nothing says where it lies.")
        self.blocks.append(blocks)

    def _add_tile(self, blocks: Blocks, tile: int, lines: tuple[Line, ...], count: Tensor) -> None:
        """Tokens by the mean place of their blocks in a tile; `count` is how many each has."""
        inside = _of_tile(blocks, tile)
        has = count > 0
        owner = blocks.owner[inside]
        for axis, line in enumerate(lines):
            at = blocks.at[inside, axis]
            mean, width = _mean_and_width(
                count, _sums(owner, at, count), _sums(owner, at**2, count)
            )
            self.center[has, axis] = line.start + line.step * mean[has]
            self.size[has, axis] = line.step * (width[has] + blocks.side**2).sqrt()
        self.tile[has] = len(self.tile) * len(self.blocks) + tile

    def _add_elements(self, blocks: Blocks) -> None:
        """Tokens by the mean coordinate of their elements."""
        real = _sums(blocks.owner, blocks.real, self.tile)
        has = real > 0
        for axis, one in enumerate((blocks.y, blocks.x)):
            sums = (_sums(blocks.owner, each, self.tile) for each in (one.total, one.squares))
            mean, width = _mean_and_width(real, *sums)
            self.center[has, axis] = mean[has]
            self.size[has, axis] = width[has].sqrt()
        self.excess[has] = DITHERED
        tile = torch.zeros_like(self.tile)
        if _tiles(blocks) < len(self.tile):
            table = _table(blocks, len(self.tile))
            tile = torch.where((table > 0).sum(0) == 1, table.argmax(0), tile)
        self.tile[has] = len(self.tile) * len(self.blocks) + tile[has]


def _sums(owner: Tensor, values: Tensor, like: Tensor) -> Tensor:
    """(M,) sums of values over the blocks of each owner; negative ones are none."""
    return torch.bincount((owner + 2).clamp_(min=0), values, minlength=len(like) + 2)[2:]


def _mean_and_width(count: Tensor, total: Tensor, squares: Tensor) -> tuple[Tensor, Tensor]:
    """Mean, and the square of the width of a uniform distribution of the same variance."""
    mean = total / count
    return mean, 12 * (squares / count - mean**2).clamp(min=0)


def reads_tiles(blocks: Blocks, tokens: int) -> bool:
    """Whether the tensor is a stack of tiles, each read by several tokens of its own."""
    if not blocks.side or _tiles(blocks) >= tokens:
        return False
    return not ((_table(blocks, tokens) > 0).sum(0) > 1).any()


def tile_lines(blocks: Blocks, tokens: int) -> Lines | None:
    """How each tile lies on the image that shows some of it and has owners; None if along no lines.

    Raises:
        GeometryRefused: A tile is no upright resampling of the image.
    """
    found: Lines = {}
    for tile in _table(blocks, tokens).any(1).nonzero().flatten().tolist():
        lines = _lines(blocks, tile)
        if lines is None:
            return None
        found[tile] = lines
    return found


def _table(blocks: Blocks, tokens: int) -> Tensor:
    """(tiles, M): how many blocks of each tile a token owns."""
    owned = blocks.owner >= 0
    pairs = blocks.tile[owned] * tokens + blocks.owner[owned]
    tiles = _tiles(blocks)
    return torch.bincount(pairs, minlength=tiles * tokens).view(tiles, tokens)


def _tiles(blocks: Blocks) -> int:
    return int(blocks.tile[-1]) + 1


def _of_tile(blocks: Blocks, tile: int) -> slice:
    """Its blocks: all tiles have as many."""
    each = len(blocks.tile) // _tiles(blocks)
    return slice(tile * each, (tile + 1) * each)


def _lines(blocks: Blocks, tile: int) -> tuple[Line, ...] | None:
    """Of one tile: nothing if it shows only padding, None if it is along no lines."""
    inside = _of_tile(blocks, tile)
    some = blocks.real[inside] > 0
    real = blocks.real[inside][some]
    found = []
    for axis, one in enumerate((blocks.y, blocks.x)):
        at, values = blocks.seen_at[inside, axis][some] / real, one.total[inside][some] / real
        if not len(at):
            return ()
        if at.max() == at.min():
            return None
        line, error = _fit(at, values, real)
        if error > STRAIGHT * abs(line.step) * blocks.side + ROUNDING:
            return None
        if not line.step > 0:
            raise refuse("A tile is no upright resampling of the image.")
        found.append(line)
    return tuple(found)


def _fit(at: Tensor, values: Tensor, weight: Tensor) -> tuple[Line, float]:
    """The line through the middle part, and the largest error there."""
    cut = EDGE * (at.max() - at.min())
    inner = (at >= at.min() + cut) & (at <= at.max() - cut)
    if len(at[inner].unique()) >= 3:
        at, values, weight = at[inner], values[inner], weight[inner]
    weight = weight / weight.sum()
    middle, value = (weight * at).sum(), (weight * values).sum()
    away = at - middle
    step = (weight * away * (values - value)).sum() / (weight * away**2).sum()
    error = (values - value - step * away).abs().max()
    return Line(float(value - step * middle), float(step)), float(error)
