"""COCO's mask formats: polygons and run-length encodings (RLE), through pycocotools.

Frame: pixels, row 0 on top, column 0 on the left. An RLE counts pixels down the columns,
alternately outside and inside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from flmm_core.data.records import brief, is_finite_number
from flmm_core.data.sample import Mask
from flmm_core.errors import DataError

POLYGON_SLACK = 1.0
"""How far a polygon may extend beyond its image, in pixels: annotators trace the border."""


def to_rle(segmentation: Any, height: int, width: int, *, source: str = "a segmentation") -> Mask:
    """Any COCO segmentation as a compressed RLE, checked against the size of its image.

    Polygons of fewer than three points cover no pixel, nor does an empty list.

    Args:
        segmentation: Polygons [[x0, y0, x1, y1, ...], ...] in pixels, their union is the mask;
            or an RLE {"size": [H, W], "counts": ...} with counts as numbers, str or bytes; or a
            list of such RLEs, their union is the mask.
        height: Of the image.
        width: Of the image.
        source: The annotation and its file, for the DataError if the segmentation is broken or
            does not fit the image.
    """
    if isinstance(segmentation, Mapping):
        return _from_rle(segmentation, height, width, source)
    if isinstance(segmentation, Sequence) and not isinstance(segmentation, (str, bytes)):
        if segmentation and all(isinstance(part, Mapping) for part in segmentation):
            return merge([_from_rle(part, height, width, source) for part in segmentation])
        return _from_polygons(segmentation, height, width, source)
    raise DataError(
        f"The mask of {source} is neither a list of polygons nor an RLE.",
        found=f"It is {brief(segmentation)}.",
    )


def encode(mask: NDArray[np.bool_]) -> Mask:
    """(H, W) bool -> RLE."""
    code = coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": bytes(code["counts"])}


def encode_any(mask: NDArray[np.bool_]) -> Mask | None:
    """(H, W) bool -> RLE, or None if the mask is empty."""
    return encode(mask) if mask.any() else None


def to_json(rle: Mask) -> dict[str, Any]:
    return {"size": [int(side) for side in rle["size"]], "counts": rle["counts"].decode()}


def empty(height: int, width: int) -> Mask:
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
    """(P, H, W) bool, false where a phrase's pixels are ignored; None ignores none."""
    return ~decode_all([mask or empty(*image_hw) for mask in ignored], image_hw)


def merge(masks: Sequence[Mask]) -> Mask:
    """The union of one or more masks of one size."""
    if not masks or any(mask["size"] != masks[0]["size"] for mask in masks):
        sizes = ", ".join(f"{height} x {width}" for height, width in (m["size"] for m in masks))
        raise ValueError(f"only masks of one size can be merged, not: {sizes or 'none'}")
    if len(masks) == 1:
        return masks[0]
    code = coco.merge(list(masks))
    return {"size": list(masks[0]["size"]), "counts": bytes(code["counts"])}


def area(rle: Mask) -> int:
    """Number of pixels."""
    return int(coco.area(rle))


def bbox(rle: Mask) -> tuple[int, int, int, int]:
    """The tight box in COCO's form: (x, y, width, height) in pixels; zeros if empty."""
    x, y, width, height = (int(side) for side in coco.toBbox(rle))
    return x, y, width, height


def _from_polygons(polygons: Sequence[Any], height: int, width: int, source: str) -> Mask:
    slack = POLYGON_SLACK
    for number, polygon in enumerate(polygons):
        if (
            not isinstance(polygon, Sequence)
            or len(polygon) % 2
            or not all(map(is_finite_number, polygon))
        ):
            raise DataError(
                f"Polygon {number} of {source} is not a list of points.",
                found=f"It is {brief(polygon)}.",
                repair="COCO polygons are lists within a list, [[x0, y0, x1, y1, x2, y2], ...], "
                "of finite numbers.",
            )
        if not polygon:
            continue
        xs, ys = polygon[0::2], polygon[1::2]
        left, right, top, bottom = min(xs), max(xs), min(ys), max(ys)
        if min(left, top) < -slack or right > width + slack or bottom > height + slack:
            raise _misfit(
                source,
                f"Polygon {number} spans x {left:g} to {right:g} and y {top:g} to {bottom:g}; "
                f"the image is {height} x {width} (height x width).",
            )
    areas = [[float(n) for n in polygon] for polygon in polygons if len(polygon) >= 6]
    if not areas:
        return empty(height, width)
    parts = coco.frPyObjects(areas, height, width)
    return {"size": [height, width], "counts": bytes(coco.merge(parts)["counts"])}


def _misfit(source: str, found: str) -> DataError:
    return DataError(
        f"The mask of {source} does not fit its image.",
        found=found,
        repair="Check that the annotation belongs to this image and was made at its size.",
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
        found = f"The RLE is {size[0]} x {size[1]}, the image {height} x {width} (height x width)."
        raise _misfit(source, found)
    if isinstance(counts, str):
        counts = counts.encode("utf-8", "surrogatepass")
    if isinstance(counts, bytes):
        runs = _runs(counts)
    else:
        fit = all(isinstance(n, int) and 0 <= n <= height * width for n in counts)
        runs = list(counts) if fit else None
    if runs is None or sum(runs) != height * width:
        covered = "unreadable" if runs is None else f"{sum(runs)} pixels long"
        raise DataError(
            f"The RLE of {source} is broken.",
            found=f"Its counts are {covered}; {height} x {width} is {height * width} pixels.",
            repair="The counts may be cut off; get an unchanged copy of the file.",
        )
    if not isinstance(counts, bytes):
        counts = coco.frPyObjects({"size": list(size), "counts": runs}, height, width)["counts"]
    return {"size": [height, width], "counts": bytes(counts)}


def _runs(code: bytes) -> list[int] | None:
    """The runs of a compressed RLE, or None if it is broken.

    pycocotools silently decodes many broken codes. A number is coded in groups of five bits,
    lowest first, one character (48 + group) each, with bit 5 set on all but the last group and
    bit 4 of the last one as the sign; from the fourth number on it is the difference to the
    number two before.
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
