"""The best and the worst phrases of a measurement, with their images."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flmm_core.data.images import read_image
from flmm_core.data.rle import decode, to_rle
from flmm_core.errors import DataError
from flmm_core.evaluation.phrase_rows import ITEMS, PhraseRow, read_some_rows
from flmm_core.painting import fade, mask_color, paint_mask, scale_to
from flmm_core.report.measurements import Ints, Measurement

SIDE = 220
"""Longest side of a panel in pixels."""


@dataclass(frozen=True)
class Example:
    """One phrase of a gallery.

    Attributes:
        iou: Of its mask, a fraction of 1.
        note: Why something is not shown, or empty.
        size: (W, H) of each panel in pixels.
        panels: Title ("image", "truth", "prediction") -> the image as a data URI; without the
            truth if it is unknown, without the image if it was not found.
    """

    item: PhraseRow
    iou: float
    note: str
    size: tuple[int, int]
    panels: dict[str, str]


def best_and_worst(
    measurement: Measurement, count: int
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Examples of a measurement, at most one per image in each gallery.

    Best is the highest IoU; worst the lowest, the surest first, then the largest object. Fewer
    than `count` are shown if there are too few to keep the two apart.

    Raises:
        DataError: A row or a mask is broken. An image that cannot be read is only noted.
    """
    columns = measurement.columns
    count = min(count, len(columns) // 2)

    def one_per_image(order: Ints) -> list[int]:
        _, first = np.unique(columns.pictures[order], return_index=True)
        return [int(place) for place in order[np.sort(first)[:count]]]

    worst = one_per_image(np.lexsort((-columns.truth, -columns.score, columns.iou)))
    good = np.lexsort((-columns.score, -columns.iou))
    best = one_per_image(good[~np.isin(good, worst)])
    items = read_some_rows(measurement.folder / ITEMS, {*best, *worst})
    folder = Path(measurement.facts.pictures or "")
    return (
        tuple(_example(folder, items[place]) for place in best),
        tuple(_example(folder, items[place]) for place in worst),
    )


def _example(folder: Path, item: PhraseRow) -> Example:
    note, panels, side = "", {}, min(SIDE, max(item.size))
    try:
        image = read_image(folder / item.picture, image_hw=item.size, as_stored=item.as_stored)
        small = scale_to(image, side)
        panels["image"] = data_uri(small)
    except DataError:
        note = "The image was not found; the masks are shown on gray."
        small = scale_to(Image.new("RGB", item.size[::-1], (150, 150, 150)), side)
    masks = {"truth": item.truth_segmentation, "prediction": item.segmentation}
    for title, code in masks.items():
        if code is not None:
            rle = to_rle(code.model_dump(), *item.size, source=f"the item '{item.item}'")
            panels[title] = data_uri(paint_mask(fade(small), decode(rle), mask_color(0)))
    iou = item.intersection / max(item.union, 1)
    return Example(item, iou, note, small.size, panels)


def data_uri(image: Image.Image) -> str:
    """An image as a JPEG inside a page."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=80, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
