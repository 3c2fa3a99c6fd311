"""Polygons filled to the pixel as OpenCV's `fillPoly` fills them, without OpenCV.

The masks of ReasonSeg are defined by OpenCV's pixels, which are neither Pillow's nor COCO's. OpenCV
itself is no dependency: its packages overwrite each other in an environment (opencv-python, the
headless and contrib ones), and 4.11 changed how many pixels a slanted edge takes. This is OpenCV up
to 4.10, which the publishers' requirements name.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]

_ONE = 1 << 16
"""A pixel, in the fixed-point numbers of OpenCV's edges."""
_FAR = 1 << 30
"""Points further away are drawn here; OpenCV's own coordinates end at twice that."""


def fill_poly(points: Sequence[Point], height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool: a polygon (x, y) in whole pixels with its outline, cut off at the image.

    Where it crosses itself, what lies inside an even number of times is outside. Two points are a
    line, one is a pixel. `polylines` of one pixel before it changes nothing.
    """
    mask = np.zeros((height, width), dtype=np.bool_)
    near = [(max(-_FAR, min(x, _FAR)), max(-_FAR, min(y, _FAR))) for x, y in points]
    edges = list(pairwise([*near, *near[:1]]))
    clipped = [_clip(start, end, (height, width)) for start, end in edges]
    _draw_lines(mask, [ends for ends, inside in clipped if inside])
    rows, xs = _crossings(edges, [ends for ends, _ in clipped], (height, width))
    order = np.lexsort((xs, rows))
    columns = (xs[order] // _ONE).clip(-1, width)
    lefts, ends = columns[::2].clip(0), columns[1::2] + 1
    for row, left, end in zip(rows[order][::2], lefts, ends, strict=True):
        mask[row, left:end] = True
    return mask


def _draw_lines(mask: NDArray[np.bool_], lines: Sequence[tuple[Point, Point]]) -> None:
    """Set the pixels of lines within the mask (Bresenham), drawn from left to right."""
    ends = [sorted(line, key=lambda point: point[0]) for line in lines]
    x, y, right, last = np.array(ends, dtype=np.int64).reshape(-1, 4).T
    across, down = right - x, abs(last - y)
    longer, shorter = np.maximum(across, down), np.minimum(across, down)
    line, steps = _ranges(longer + 1)
    # The shorter side moves at the nearest step; halves are rounded to the start.
    longer, shorter = longer[line], shorter[line]
    moved = -((longer - 2 * shorter * steps) // np.maximum(2 * longer, 1))
    flat = (across >= down)[line]
    xs, ys = np.where(flat, steps, moved), np.where(flat, moved, steps)
    mask[y[line] + np.where((last >= y)[line], ys, -ys), x[line] + xs] = True


def _crossings(
    edges: Sequence[tuple[Point, Point]],
    clipped: Sequence[tuple[Point, Point]],
    image_hw: tuple[int, int],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where edges cross the rows of the image: the rows, and x in fixed-point numbers."""
    starts = []
    for edge, ends in zip(edges, clipped, strict=True):
        bottom, top = max(edge[0][1], edge[1][1]), min(edge[0][1], edge[1][1])
        first, count = max(top, 0), min(bottom, image_hw[0]) - max(top, 0)
        if count <= 0:
            continue
        # An edge that leaves the image runs through the pixels that its line was cut at, unrounded.
        half = _ONE // 2 if all(_is_inside(point, image_hw) for point in edge) else 0
        (x, y), (end_x, end_y) = ends if ends[0][1] != ends[1][1] else edge
        slope = _divide((end_x - x) * _ONE, end_y - y)
        if edge[0][1] > edge[1][1]:
            x, y = end_x, end_y
        starts.append((first, count, x * _ONE + half + (first - y) * slope, slope))
    firsts, counts, xs, slopes = np.array(starts, dtype=np.int64).reshape(-1, 4).T
    places, steps = _ranges(counts)
    return firsts[places] + steps, xs[places] + steps * slopes[places]


def _ranges(counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For every n of the counts its place, n times, and the numbers below n."""
    places = np.repeat(np.arange(len(counts)), counts)
    return places, np.arange(len(places)) - np.repeat(np.cumsum(counts) - counts, counts)


def _clip(start: Point, end: Point, image_hw: tuple[int, ...]) -> tuple[tuple[Point, Point], bool]:
    """The line's ends moved along it to the image's border, and whether any of it is inside."""
    if _is_inside(start, image_hw) and _is_inside(end, image_hw):
        return (start, end), True
    lasts = image_hw[1] - 1, image_hw[0] - 1
    ends = [list(start), list(end)]
    for axis in (1, 0):
        sides = [[(n > last) - (n < 0) for n, last in zip(p, lasts, strict=True)] for p in ends]
        if any(one == other != 0 for one, other in zip(*sides, strict=True)):
            break  # both ends are beyond the same side
        for this, other in (ends, ends[::-1]):
            bound = min(max(this[axis], 0), lasts[axis])
            if bound != this[axis]:
                rise, run = other[1 - axis] - this[1 - axis], other[axis] - this[axis]
                this[1 - axis] += _divide((bound - this[axis]) * rise, run)
                this[axis] = bound
    (x0, y0), (x1, y1) = ends
    start, end = (x0, y0), (x1, y1)
    return (start, end), _is_inside(start, image_hw) and _is_inside(end, image_hw)


def _is_inside(point: Point, image_hw: tuple[int, ...]) -> bool:
    return 0 <= point[0] < image_hw[1] and 0 <= point[1] < image_hw[0]


def _divide(number: int, by: int) -> int:
    """The quotient without its fraction, as C divides."""
    quotient = abs(number) // abs(by)
    return quotient if (number < 0) == (by < 0) else -quotient
