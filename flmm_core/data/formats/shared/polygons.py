"""Polygons as annotation tools draw them: filled with their outline, on whole pixels.

LabelMe and ReasonSeg fill polygons so, COCO does not (there the outline runs between pixels): the
two differ by half a pixel around.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flmm_core.data.formats.shared.fields import brief
from flmm_core.errors import DataError

Points = list[tuple[float, float]]


def check_points(value: Any, least: int, where: str) -> Points:
    """A list of at least `least` points (x, y) in pixels, finite numbers.

    Raises:
        DataError: It is anything else; `where` names the shape.
    """
    good = isinstance(value, Sequence) and not isinstance(value, (str, bytes))
    if not good or not all(_is_point(point) for point in value):
        raise DataError(
            f"The points of {where} are {brief(value)}.",
            found="Expected a list of points [x, y], finite numbers in pixels.",
        )
    if len(value) < least:
        raise DataError(
            f"The points of {where} are too few.", found=f"It has {len(value)}, needed: {least}."
        )
    return [(float(x), float(y)) for x, y in value]


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, Sequence)
        and not isinstance(point, (str, bytes))
        and len(point) == 2
        and all(isinstance(n, (int, float)) and not isinstance(n, bool) for n in point)
        and all(math.isfinite(n) for n in point)
    )


def fill(points: Points, height: int, width: int) -> NDArray[np.bool_]:
    """(H, W) bool: the polygon with its outline; what lies outside the image is cut off."""
    canvas = Image.new("L", (width, height))
    ImageDraw.Draw(canvas).polygon(points, fill=1, outline=1)
    return np.asarray(canvas).astype(np.bool_)


def rectangles(mask: NDArray[np.bool_]) -> list[Points]:
    """Rectangles whose `fill`s joined are exactly the mask, as few as runs of equal rows allow.

    Args:
        mask: (H, W) bool.

    Returns:
        Four corners each, in pixels.
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
            found.append(
                [
                    (float(x), float(y))
                    for x, y in (
                        (left, top), (right, top), (right, row - 1), (left, row - 1),
                    )
                ]
            )  # fmt: skip
        for run in runs:
            open_since.setdefault(run, row)
    return found
