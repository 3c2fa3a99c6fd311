"""A pixel tensor in blocks of elements that reach the same token, such as patches.

Everything after this works on a few numbers for each block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.geometry.owners import NOBODY, SEVERAL, Ratios
from flmm_core.pipeline.backbone.geometry.ramps import Elements

CHANNELS = 3


@dataclass(frozen=True)
class Coordinate:
    """One coordinate of the real elements of K blocks: (K,) float64 each."""

    total: Tensor
    squares: Tensor
    low: Tensor
    high: Tensor


@dataclass(frozen=True)
class Blocks:
    """K blocks of one pixel tensor: (K,) each.

    Attributes:
        owner: int64 place in the sequence of the token, or NOBODY or SEVERAL.
        elements: How many elements each block has.
        real: float64, how many of them are no padding.
        y: In fractions of the image; `x` too.
        tile: int64, the tile of the tensor.
        at: (K, 2) float64, the row and column in the tile of the block's center.
        seen_at: (K, 2) float64, those of its real elements, summed up.
        side: Of a block in pixels; 0 if the tensor is no stack of tiles, and `at` says nothing.
    """

    owner: Tensor
    elements: int
    real: Tensor
    y: Coordinate
    x: Coordinate
    tile: Tensor
    at: Tensor
    seen_at: Tensor
    side: int


class _Cut:
    """How a tensor is cut: as tiles (..., 3, h, w) or (..., h, w, 3), or in its last dimension."""

    def __init__(self, shape: torch.Size) -> None:
        last = [axis for axis in (-3, -1) if len(shape) >= 4 and shape[axis] == CHANNELS]
        self.axis = last[0] if last else None
        self.length = shape[-1]

    def planes(self, values: Tensor) -> Tensor:
        """(tiles, 3, h, w)."""
        moved = values.movedim(self.axis or -3, -3)
        return moved.reshape(-1, *moved.shape[-3:])

    def guess(self, ratios: Tensor) -> int:
        """The largest side that fits where the owner changes, in pixels or elements."""
        if self.axis is None:
            return self.length
        planes = self.planes(ratios).nan_to_num(-1.0)
        h, w = planes.shape[-2:]
        middles = planes[:, 0, :, w // 2], planes[:, 0, h // 2]
        found = [(middle.diff().abs() > 0.3).any(0).nonzero().flatten() + 1 for middle in middles]
        return math.gcd(h, w, *(int(edge) for edges in found for edge in edges))

    def blocks(self, values: Tensor, side: int) -> Tensor:
        """(K, elements)."""
        if self.axis is None:
            return values.reshape(-1, side)
        planes = self.planes(values)
        n, c, h, w = planes.shape
        cut = planes.reshape(n, c, h // side, side, w // side, side)
        return cut.permute(0, 2, 4, 1, 3, 5).reshape(-1, c * side * side)

    def places(self, values: Tensor, side: int) -> tuple[Tensor, Tensor, Tensor]:
        """Of each block the tile (K,) and the center (K, 2); the offsets of its elements (E, 2)."""
        n, c, h, w = self.planes(values).shape
        inside = torch.arange(side, dtype=torch.float64) - (side - 1) / 2
        offsets = torch.cartesian_prod(inside, inside) if side > 1 else torch.zeros(1, 2).double()
        starts = [torch.arange(0, length, side) + (side - 1) / 2 for length in (h, w)]
        at = torch.cartesian_prod(*starts).double().repeat(n, 1)
        tile = torch.arange(n).repeat_interleave(len(at) // n)
        return tile, at, offsets.repeat(c, 1)


def cut_blocks(key: str, ratios: Ratios, elements: Elements, *, single: bool = False) -> Blocks:
    """The blocks of one pixel tensor: large ones if each reaches one token, else single pixels.

    `single` takes single pixels in any case.
    """
    given = ratios.by_key[key]
    cut = _Cut(given.shape)
    side = 1 if single else cut.guess(given)
    owner = _owners(cut, key, ratios, side)
    if side > 1 and (owner == SEVERAL).any():
        side = 1
        owner = _owners(cut, key, ratios, side)
    shown = cut.blocks(elements.real, side)
    real = shown.sum(1).double()
    y, x = (_coordinate(cut.blocks(each, side), shown, real) for each in (elements.y, elements.x))
    if cut.axis is None:
        at = torch.zeros(len(owner), 2, dtype=torch.float64)
        stack = given.shape[0] if given.ndim > 2 else 1
        tile = torch.arange(stack).repeat_interleave(len(owner) // stack)
        return Blocks(owner, shown.shape[1], real, y, x, tile, at, at, 0)
    tile, at, offsets = cut.places(given, side)
    seen_at = at * real[:, None]
    some = (real > 0) & (real < shown.shape[1])
    seen_at[some] += shown[some].double() @ offsets
    return Blocks(owner, shown.shape[1], real, y, x, tile, at, seen_at, side)


def _owners(cut: _Cut, key: str, ratios: Ratios, side: int) -> Tensor:
    blocks = cut.blocks(ratios.by_key[key], side)
    low, high = blocks.aminmax(dim=1)  # NaN if any of a block is
    owner = ratios.owners(low, high)
    unread = high.isnan()
    if unread.any():
        unread[unread.clone()] = blocks[unread].isnan().all(1)
        owner[unread] = NOBODY
    unclear = owner == SEVERAL
    if unclear.any():
        strength = cut.blocks(ratios.strength[key], side)[unclear]
        owner[unclear] = ratios.owners_of_strong(blocks[unclear], strength)
    return owner


def _coordinate(values: Tensor, shown: Tensor, real: Tensor) -> Coordinate:
    """From (K, elements) float32, which is 0 in padding."""
    low, high = values.aminmax(dim=1)
    some = (real > 0) & (real < values.shape[1])
    if some.any():
        low[some] = values[some].masked_fill(~shown[some], torch.inf).amin(1)
        high[some] = values[some].masked_fill(~shown[some], -torch.inf).amax(1)
    squares = torch.linalg.vector_norm(values, dim=1).double() ** 2
    return Coordinate(values.sum(1).double(), squares, low.double(), high.double())
