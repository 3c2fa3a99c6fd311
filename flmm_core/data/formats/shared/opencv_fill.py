"""Polygons filled to the pixel as OpenCV's `fillPoly` fills them, without OpenCV.

The masks of ReasonSeg are defined by OpenCV's pixels, which are neither Pillow's nor COCO's. OpenCV
itself is no dependency: its packages overwrite each other in an environment (opencv-python, the
headless and contrib ones), and 4.11 changed how many pixels a slanted edge takes. This is OpenCV up
to 4.10, which the publishers' requirements name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Point = tuple[int, int]

_ONE = 1 << 16
"""A pixel, in the fixed-point numbers of OpenCV's edges."""


def fill_poly(points: Sequence[Point], height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool: a polygon (x, y) in whole pixels with its outline, cut off at the image.

    Where it crosses itself, what lies inside an even number of times is outside. Two points are a
    line, one is a pixel. `polylines` of one pixel before it changes nothing.
    """
    mask = np.zeros((height, width), dtype=np.bool_)
    crossings: dict[int, list[int]] = defaultdict(list)
    for start, end in pairwise([*points, *points[:1]]):
        _draw_line(mask, start, end)
        _cross_rows(crossings, start, end, (height, width))
    for row, xs in crossings.items():
        xs.sort()
        for left, right in zip(xs[::2], xs[1::2], strict=True):
            mask[row, max(left // _ONE, 0) : max(right // _ONE + 1, 0)] = True
    return mask


def _draw_line(mask: NDArray[np.bool_], start: Point, end: Point) -> None:
    """Set the pixels of a line (Bresenham), drawn from left to right."""
    (start, end), inside = _clip(start, end, mask.shape)
    if not inside:
        return
    (x, y), (right, last) = sorted((start, end), key=lambda point: point[0])
    across, down = right - x, abs(last - y)
    longer, shorter = max(across, down), min(across, down)
    steps = np.arange(longer + 1)
    # The shorter side moves at the nearest step; halves are rounded to the start.
    moved = -((longer - 2 * shorter * steps) // max(2 * longer, 1))
    xs, ys = (steps, moved) if across >= down else (moved, steps)
    mask[y + (ys if last >= y else -ys), x + xs] = True


def _cross_rows(
    crossings: dict[int, list[int]], start: Point, end: Point, image_hw: tuple[int, int]
) -> None:
    """Add where an edge crosses the rows of the image: x, fixed-point, by row."""
    if start[1] == end[1]:
        return
    ends, _ = _clip(start, end, image_hw)
    # An edge that leaves the image runs through the pixels that its line was cut at, unrounded.
    half = _ONE // 2 if _is_inside(start, image_hw) and _is_inside(end, image_hw) else 0
    (x, y), (end_x, end_y) = ends if ends[0][1] != ends[1][1] else (start, end)
    slope = _divide((end_x - x) * _ONE, end_y - y)
    if start[1] > end[1]:
        x, y = end_x, end_y
    top, bottom = sorted((start[1], end[1]))
    for row in range(max(top, 0), min(bottom, image_hw[0])):
        crossings[row].append(x * _ONE + half + (row - y) * slope)


def _clip(start: Point, end: Point, image_hw: tuple[int, ...]) -> tuple[tuple[Point, Point], bool]:
    """The line's ends moved along it to the image's border, and whether any of it is inside."""
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
