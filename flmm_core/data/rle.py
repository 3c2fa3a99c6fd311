"""COCO's ways to write a mask down: polygons and run-length codes, through pycocotools.

Frame: pixels, row 0 on top, column 0 on the left. A run-length code ("RLE") counts pixels down
the columns, alternately outside and inside.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from flmm_core.data.formats.shared.fields import brief
from flmm_core.data.sample import Mask
from flmm_core.errors import DataError

POLYGON_SLACK = 1.0
"""How far, in pixels, a polygon may reach beyond its image: annotators trace the border."""

_REPAIR = "Check that the annotation belongs to this image and was made at its size."


def to_rle(segmentation: Any, height: int, width: int, *, source: str = "a segmentation") -> Mask:
    """Any COCO segmentation as a compressed RLE that is known to fit its image.

    Args:
        segmentation: Polygons [[x0, y0, x1, y1, ...], ...] in pixels, their union is the mask;
            or an RLE {"size": [H, W], "counts": ...} with counts as numbers, str or bytes.
        height: H of the image.
        width: W of the image.
        source: Names the annotation and its file in errors.

    Raises:
        DataError: The segmentation is broken or does not fit the image.
    """
    if isinstance(segmentation, Mapping):
        return _from_rle(segmentation, height, width, source)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, (str, bytes)):
        return _from_polygons(segmentation, height, width, source)
    raise DataError(
        f"The mask of {source} is neither a list of polygons nor an RLE.",
        found=f"It is {brief(segmentation)}.",
    )


def encode(mask: NDArray[np.bool_]) -> Mask:
    """(H, W) bool -> RLE."""
    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": bytes(code["counts"])}


def empty(height: int, width: int) -> Mask:
    """A mask with no pixel inside."""
    return encode(np.zeros((height, width), dtype=np.bool_))


def decode(rle: Mask) -> NDArray[np.bool_]:
    """RLE -> (H, W) bool, in C order."""
    return np.ascontiguousarray(coco.decode(rle)).view(np.bool_)


def decode_all(masks: Sequence[Mask], image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """The masks of one image -> (P, H, W) bool, P = 0 included."""
    stack = np.zeros((len(masks), *image_hw), dtype=np.bool_)
    for index, mask in enumerate(masks):
        stack[index] = decode(mask)
    return stack


def counted(ignored: Sequence[Mask | None], image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(P, H, W) bool, false where a phrase's pixels are to be ignored; None ignores none."""
    return ~decode_all([mask or empty(*image_hw) for mask in ignored], image_hw)


def merge(masks: Sequence[Mask]) -> Mask:
    """The union of one or more masks of one size."""
    if not masks or any(mask["size"] != masks[0]["size"] for mask in masks):
        sizes = ", ".join(f"{height} x {width}" for height, width in (m["size"] for m in masks))
        raise ValueError(f"only masks of one size can be merged, not: {sizes or 'none'}")
    code = coco.merge(list(masks))
    return {"size": list(masks[0]["size"]), "counts": bytes(code["counts"])}


def area(rle: Mask) -> int:
    """Pixels inside."""
    return int(coco.area(rle))


def bbox(rle: Mask) -> tuple[int, int, int, int]:
    """The tight box as COCO writes it: (x, y, width, height) in pixels; zeros if empty."""
    x, y, width, height = (int(side) for side in coco.toBbox(rle))
    return x, y, width, height


def _from_polygons(polygons: Sequence[Any], height: int, width: int, source: str) -> Mask:
    if not polygons:
        raise DataError(
            f"The mask of {source} is empty: it has no polygon.",
            repair="Remove the annotation, or give it polygons or an RLE.",
        )
    for number, polygon in enumerate(polygons):
        _check_polygon(polygon, number, height, width, source)
    parts = coco.frPyObjects([[float(n) for n in polygon] for polygon in polygons], height, width)
    return {"size": [height, width], "counts": bytes(coco.merge(parts)["counts"])}


def _check_polygon(polygon: Any, number: int, height: int, width: int, source: str) -> None:
    if not isinstance(polygon, Sequence) or isinstance(polygon, (str, bytes)):
        raise DataError(
            f"Polygon {number} of {source} is not a list of numbers.",
            found=f"It is {brief(polygon)}.",
            repair="COCO polygons are lists within a list: [[x0, y0, x1, y1, x2, y2], ...].",
        )
    if any(isinstance(n, bool) or not isinstance(n, (int, float)) for n in polygon) or not all(
        math.isfinite(n) for n in polygon
    ):
        raise DataError(
            f"Polygon {number} of {source} is not a list of finite numbers.",
            found=f"It is {brief(polygon)}.",
        )
    if len(polygon) < 6 or len(polygon) % 2:
        raise DataError(
            f"Polygon {number} of {source} has {len(polygon)} numbers.",
            found="A polygon has an even count of at least 6: x and y of three points or more.",
        )
    xs, ys = polygon[0::2], polygon[1::2]
    slack = POLYGON_SLACK
    if min(xs) < -slack or min(ys) < -slack or max(xs) > width + slack or max(ys) > height + slack:
        raise DataError(
            f"The mask of {source} does not fit its image.",
            found=f"Polygon {number} spans x {min(xs):g} to {max(xs):g} and y {min(ys):g} to "
            f"{max(ys):g}; the image is {height} x {width} (height x width).",
            repair=_REPAIR,
        )


def _from_rle(rle: Mapping[Any, Any], height: int, width: int, source: str) -> Mask:
    size, counts = rle.get("size"), rle.get("counts")
    if (
        not isinstance(size, Sequence)
        or len(size) != 2
        or not all(isinstance(side, int) for side in size)
        or not isinstance(counts, (str, bytes, list, tuple))
    ):
        raise DataError(
            f"The RLE of {source} is broken.",
            found=f"Expected 'size' [height, width] and 'counts'; it is {brief(dict(rle))}.",
        )
    if tuple(size) != (height, width):
        raise DataError(
            f"The mask of {source} does not fit its image.",
            found=f"The RLE is {size[0]} x {size[1]}, the image {height} x {width} "
            "(height x width).",
            repair=_REPAIR,
        )
    runs: list[int] | None
    if isinstance(counts, (str, bytes)):
        code = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
        runs = _runs(code)
    else:
        code = b""
        runs = [n for n in counts if isinstance(n, int) and 0 <= n <= height * width]
        runs = runs if len(runs) == len(counts) else None
    if runs is None or sum(runs) != height * width:
        covered = "unreadable" if runs is None else f"{sum(runs)} pixels long"
        raise DataError(
            f"The RLE of {source} is broken.",
            found=f"Its counts are {covered}; {height} x {width} is {height * width} pixels.",
            repair="The counts may be cut off; get an unchanged copy of the file.",
        )
    if not code:
        code = bytes(
            coco.frPyObjects({"size": list(size), "counts": runs}, height, width)["counts"]
        )
    return {"size": [height, width], "counts": code}


def _runs(code: bytes) -> list[int] | None:
    """The runs of a compressed RLE, or None if it is broken.

    pycocotools decodes many broken codes into some mask without a word. The code: each number is
    in groups of five bits, lowest first, a character (48 + group) each, with bit 5 set on all but
    the last group and bit 4 of the last one as the sign; from the fourth number on it is the
    difference to the number two before.
    """
    groups = np.frombuffer(code, dtype=np.uint8).astype(np.int64) - 48
    if len(groups) == 0 or groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        return None
    ends = np.flatnonzero((groups & 32) == 0)
    starts = np.concatenate(([0], ends[:-1] + 1))
    lengths = ends - starts + 1
    if lengths.max() > 10:
        return None
    shifts = 5 * (np.arange(len(groups)) - np.repeat(starts, lengths))
    values = np.add.reduceat((groups & 31) << shifts, starts)
    values -= np.where(groups[ends] & 16, np.int64(1) << (5 * lengths), 0)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return None if values.min() < 0 else [int(n) for n in values]
