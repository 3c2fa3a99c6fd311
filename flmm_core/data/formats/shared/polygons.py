"""Polygons and circles filled including their outline, on whole pixels, as LabelMe draws them.

In COCO the outline runs between pixels, so the same polygon is half a pixel smaller on each side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flmm_core.data.findings import DegenerateError
from flmm_core.data.records import brief, is_finite_number
from flmm_core.errors import DataError

Points = list[tuple[float, float]]


def check_points(value: Any, least: int, where: str) -> Points:
    """A list of at least `least` points (x, y) in pixels.

    Raises:
        DegenerateError: There are fewer.
        DataError: It is anything else.
    """
    if not isinstance(value, list) or not all(map(_is_point, value)):
        raise DataError(
            f"The points of {where} are {brief(value)}.",
            found=f"Expected a list of {least} or more points [x, y], finite numbers in pixels.",
        )
    if len(value) < least:
        raise DegenerateError(where, f"it needs {least} points and has {len(value) or 'none'}")
    return [(float(x), float(y)) for x, y in value]


def _is_point(point: Any) -> bool:
    return isinstance(point, list) and len(point) == 2 and all(map(is_finite_number, point))


def fill(points: Points, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool: the polygon with its outline; what lies outside the image is cut off."""
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).polygon(points, fill=1, outline=1)
    return np.asarray(canvas).astype(np.bool_)


def fill_circle(points: Points, height: int, width: int, where: str) -> NDArray[np.bool_]:
    """(H, W) bool: a circle, given by its center and a point on it, as in `fill`.

    Raises:
        DataError: It is so large that it cannot have been drawn; `where` names it.
    """
    (x, y), on_it = points
    radius = math.dist((x, y), on_it)
    if radius > 10 * (height + width):  # Pillow would take minutes for a million pixels
        raise DataError(
            f"The circle of {where} does not fit its image.",
            found=f"Its radius is {radius:g} pixels; the image is {height} x {width} "
            "(height x width).",
        )
    canvas = Image.new("L", (width, height))
    box = x - radius, y - radius, x + radius, y + radius
    ImageDraw.Draw(canvas).ellipse(box, fill=1, outline=1)
    return np.asarray(canvas).astype(np.bool_)


def rectangles(mask: NDArray[np.bool_]) -> list[Points]:
    """Rectangles, as four corners in pixels, whose union after `fill` is the mask (H, W) bool.

    Equal runs in consecutive rows are one rectangle.
    """
    height = len(mask)
    edges = np.diff(np.pad(mask, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    starts, stops = np.nonzero(edges == 1), np.nonzero(edges == -1)
    rows: list[list[tuple[int, int]]] = [[] for _ in range(height + 1)]
    for row, left, right in zip(*starts, stops[1], strict=True):
        rows[row].append((int(left), int(right) - 1))
    found: list[Points] = []
    open_since: dict[tuple[int, int], int] = {}
    for row, runs in enumerate(rows):
        for run in [run for run in open_since if run not in runs]:
            top, (left, right) = open_since.pop(run), run
            corners = (left, top), (right, top), (right, row - 1), (left, row - 1)
            found.append([(float(x), float(y)) for x, y in corners])
        for run in runs:
            open_since.setdefault(run, row)
    return found
