"""The outlines of a mask as COCO polygons, which run between the pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def outlines(mask: NDArray[np.bool_]) -> list[list[int]]:
    """Polygons [x0, y0, x1, y1, ...] of whole numbers whose union is exactly the mask (H, W) bool.

    COCO has no polygons with holes. Rows of pixels are therefore joined to one polygon only as far
    as each continues a single row above: a disk is one polygon, a ring is four. An empty mask has
    none.
    """
    filled = np.flatnonzero(mask.any(axis=1))
    if not len(filled):
        return []
    top = int(filled[0])
    window = mask[top : filled[-1] + 1]
    edges = np.diff(np.pad(window, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = np.nonzero(edges == 1), np.nonzero(edges == -1)
    rows: list[list[tuple[int, int]]] = [[] for _ in range(len(window) + 1)]
    row_of, lefts, rights = (each.tolist() for each in (*starts, stops[1]))
    for row, left, right in zip(row_of, lefts, rights, strict=True):
        rows[row].append((left, right))
    found: list[list[int]] = []
    growing: dict[tuple[int, int], list[tuple[int, int]]] = {}
    """The last run of each unfinished polygon -> all its runs (left, right), from the top."""
    for row, runs in enumerate(rows):
        continued: dict[tuple[int, int], list[tuple[int, int]]] = {}
        below = {last: [run for run in runs if _overlap(run, last)] for last in growing}
        for run in runs:
            above = [last for last in growing if _overlap(run, last)]
            alone = len(above) == 1 and len(below[above[0]]) == 1
            continued[run] = [*growing.pop(above[0]), run] if alone else [run]
        found += [_around(chain, top + row - len(chain)) for chain in growing.values()]
        growing = continued
    return found


def _overlap(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] < other[1] and other[0] < one[1]


def _around(chain: list[tuple[int, int]], top: int) -> list[int]:
    """The outline of consecutive rows of pixels, the first at `top`: clockwise, corners only."""
    corners: list[int] = []
    for side, rows in ((1, range(len(chain))), (0, range(len(chain) - 1, -1, -1))):
        for index in rows:
            x, y = chain[index][side], top + index
            ends = (y, y + 1) if side else (y + 1, y)
            if corners and corners[-2:] == [x, ends[0]]:
                corners[-1] = ends[1]  # straight on
            else:
                corners += [x, ends[0], x, ends[1]]
    return corners
