"""Assembles tokens into regular grids: tiles side by side become one view."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.geometry.places import Places
from flmm_core.pipeline.backbone.geometry.refused import refuse
from flmm_core.pipeline.types import Box

TOLERANCE = 0.1
"""How far a token may lie from its cell's center, in cells."""
SAME_SCALE = 0.04
"""How much the sizes of tokens of one view may differ, as a fraction."""
SAME_PHASE = 0.2
"""How far from a whole number of cells two tiles of one view may lie apart, in cells."""


@dataclass(frozen=True)
class Grid:
    """A regular grid.

    Attributes:
        tokens: (h, w) int64, the image token of each cell.
        box: As of an `ImageView`.
        residual: The largest distance of a token from its cell's center, in cells.
        tiles: How many tiles it is made of.
    """

    tokens: Tensor
    box: Box
    residual: float
    tiles: int


def assemble(places: Places, tokens: Tensor) -> list[Grid]:
    """The views of the given image tokens: a coarse one before those of more tiles.

    Raises:
        GeometryRefused: They make no regular grids.
    """
    scales = _by_scale(places, tokens)
    phases = [group for scale in scales for group in _by_phase(places, scale)]
    ways = ([tokens], scales, phases, _by_tile(places, tokens))
    for groups in ways:
        found = [_grids(group, places) for group in groups]
        if all(found):
            grids = [grid for several in found for grid in several]
            return sorted(grids, key=_coarse_first)
    raise refuse(f"The tokens make no regular grids: none fits them to {TOLERANCE} cells.")


def _coarse_first(grid: Grid) -> tuple[int, int, int]:
    return grid.tiles, grid.tokens.numel(), int(grid.tokens.min())


def _by_scale(places: Places, tokens: Tensor) -> list[Tensor]:
    """Tokens of one size together."""
    sizes = places.size[tokens]
    left = torch.ones(len(tokens), dtype=torch.bool)
    groups = []
    while left.any():
        first = sizes[left.nonzero()[0, 0]]
        same = left & ((sizes / first).log().abs() < SAME_SCALE).all(1)
        same[left.nonzero()[0, 0]] = True  # a size of zero is like no other
        groups.append(tokens[same])
        left &= ~same
    return groups


def _by_phase(places: Places, tokens: Tensor) -> list[Tensor]:
    """Tokens of one size apart where their tiles lie fractions of a cell beside each other."""
    cell = places.size[tokens].median(0).values
    groups: list[tuple[Tensor, list[Tensor]]] = []
    for tile in _by_tile(places, tokens):
        corner = places.center[tile[0]]
        for first, group in groups:
            steps = (corner - first) / cell
            if ((steps - steps.round()).abs() < SAME_PHASE).all():
                group.append(tile)
                break
        else:
            groups.append((corner, [tile]))
    return [torch.cat(group) for _, group in groups]


def _by_tile(places: Places, tokens: Tensor) -> list[Tensor]:
    tile = places.tile[tokens]
    return [tokens[tile == number] for number in tile.unique()]


def _grids(tokens: Tensor, places: Places) -> list[Grid]:
    """The grid that the tokens make; several of the same cells; none if they are not regular."""
    excess = float(places.excess[tokens].max())
    axes = [
        _axis(places.center[tokens, axis], places.size[tokens, axis], excess) for axis in (0, 1)
    ]
    if None in axes:
        return []
    (row, h, y0, y1, error_y), (column, w, x0, x1, error_x) = (a for a in axes if a is not None)
    cell = row * w + column
    layers, rest = divmod(len(tokens), h * w)
    if rest or (cell.bincount(minlength=h * w) != layers).any():
        return []
    if layers > 1:
        turns = _turns(cell.tolist())
        return [grid for n in range(layers) for grid in _grids(tokens[turns == n], places)]
    table = torch.empty(h * w, dtype=torch.int64)
    table[cell] = tokens
    tiles = len(places.tile[tokens].unique())
    return [Grid(table.view(h, w), (y0, x0, y1, x1), max(error_y, error_x), tiles)]


def _turns(cells: Iterable[int]) -> Tensor:
    """How often each cell was there before: a thumbnail can be as fine as a tile."""
    seen: dict[int, int] = {}
    turns = []
    for cell in cells:
        turns.append(seen.get(cell, 0))
        seen[cell] = turns[-1] + 1
    return torch.tensor(turns)


def _axis(
    center: Tensor, size: Tensor, excess: float
) -> tuple[Tensor, int, float, float, float] | None:
    """(place of each token, places, start, end, error in cells) along one axis; None if irregular.

    Centers and sizes are (n,) in fractions of the image; `excess` is that of `Places`.
    """
    ordered, order = center.sort()
    width = float(size.median())
    if not width > 0:
        return None
    steps = (ordered.diff() > 0.4 * width).long().cumsum(0)
    at = torch.zeros_like(order)
    at[order[1:]] = steps
    count = int(at.max()) + 1
    step = width
    if count > 1:
        away = at.double() - at.double().mean()
        step = float((away * (center - center.mean())).sum() / (away**2).sum())
    start = float(center.mean()) - step * float(at.double().mean())
    narrowest = max(width**2 - excess, 0.0) ** 0.5
    if not narrowest * (1 - TOLERANCE) <= step <= width * (1 + TOLERANCE):
        return None  # cells that overlap, or leave gaps
    error = float(((center - start - step * at).abs() / step).max())
    if error > TOLERANCE:
        return None
    return at, count, start - step / 2, start + (count - 0.5) * step, error
