"""The best and the worst phrases of a cell, their images inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data.images import read_image
from flmm_core.data.rle import decode, to_rle
from flmm_core.errors import DataError
from flmm_core.evaluation.phrase_rows import ITEMS, Item, Rle, read_some_items
from flmm_core.report.cells import Cell, Columns

SIDE = 220
"""Longest side of a panel in pixels."""
TRUE, PREDICTED = (0, 114, 178), (230, 120, 0)
"""Blue and orange, which all kinds of sight tell apart."""


@dataclass(frozen=True)
class Panel:
    """One small image.

    Attributes:
        title: What it shows.
        alt: The same for those who do not see it.
        data: A data URI.
    """

    title: str
    alt: str
    data: str


@dataclass(frozen=True)
class Example:
    """One phrase of a gallery.

    Attributes:
        phrase: Its words.
        image: The file's name.
        item: Its unique name.
        iou: Of its mask, a fraction of 1.
        score: The method's own.
        probability: Calibrated, or None.
        note: Why something is not shown, or empty.
        size: (W, H) of each panel in pixels.
        panels: Image, truth, prediction; without what is not known.
    """

    phrase: str
    picture: str
    item: str
    iou: float
    score: float
    probability: float | None
    note: str
    size: tuple[int, int]
    panels: tuple[Panel, ...]


def best_and_worst(cell: Cell, count: int) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Examples of a cell, at most one an image in each gallery.

    Best is the highest IoU; worst the lowest, the surest first, then the largest object.

    Args:
        cell: Whose rows; the masks are read from its folder.
        count: How many of each; a small cell gives fewer rather than showing one in both.

    Raises:
        DataError: A row or a mask is broken. An image that cannot be read is only noted.
    """
    columns = cell.columns
    count = min(count, len(columns) // 2)
    sure = np.lexsort((-columns.truth, -columns.score, columns.iou))
    worst = _one_a_image(columns, sure, count)
    good = np.lexsort((-columns.score, -columns.iou))
    best = _one_a_image(columns, good[~np.isin(good, worst)], count)
    items = read_some_items(cell.folder / ITEMS, {*best, *worst})
    return (
        tuple(_example(cell, items[place]) for place in best),
        tuple(_example(cell, items[place]) for place in worst),
    )


def _one_a_image(columns: Columns, order: NDArray[np.int64], count: int) -> list[int]:
    chosen: dict[int, int] = {}
    for place in order:
        if len(chosen) >= count:
            break
        chosen.setdefault(int(columns.pictures[place]), int(place))
    return list(chosen.values())


def _example(cell: Cell, item: Item) -> Example:
    height, width = item.size
    scale = min(1.0, SIDE / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    note, panels = "", []
    path = Path(cell.facts.pictures or "") / item.picture
    try:
        picture = read_image(path, image_hw=item.size).resize(small, Image.Resampling.LANCZOS)
        panels.append(Panel("picture", f"The image {item.picture}", _data_uri(picture)))
    except DataError:
        note = "The image was not found; the masks are shown on grey."
        picture = Image.new("RGB", small, (150, 150, 150))
    said = f"“{item.phrase}” in {item.picture}"
    if item.truth_segmentation is not None:
        truth = _shown(picture, item.truth_segmentation, item, TRUE)
        panels.append(Panel("truth", f"True mask of {said}", truth))
    predicted = _shown(picture, item.segmentation, item, PREDICTED)
    panels.append(Panel("prediction", f"Predicted mask of {said}", predicted))
    return Example(
        phrase=item.phrase,
        picture=item.picture,
        item=item.item,
        iou=item.intersection / max(item.union, 1),
        score=item.score,
        probability=item.probability,
        note=note,
        size=small,
        panels=tuple(panels),
    )


def _shown(picture: Image.Image, mask: Rle, item: Item, colour: Sequence[int]) -> str:
    height, width = item.size
    code = to_rle(mask.model_dump(), height, width, source=f"the item '{item.item}'")
    return _data_uri(tint(picture, decode(code), colour))


def tint(picture: Image.Image, mask: NDArray[np.bool_], colour: Sequence[int]) -> Image.Image:
    """The mask in colour with a firm edge, all else faded.

    Args:
        image: RGB, of any size.
        mask: (H, W) bool; brought to the image's size by area.
        colour: RGB, each in [0, 255].
    """
    values = Image.fromarray(mask.astype(np.float32))
    share = np.asarray(values.resize(picture.size, Image.Resampling.BOX))[..., None]
    pixels = np.asarray(picture, dtype=np.float64)
    grey = pixels.mean(axis=-1, keepdims=True)
    outside = 0.45 * (0.5 * pixels + 0.5 * grey) + 0.55 * 235
    inside = 0.4 * grey + 0.6 * np.array(colour, dtype=np.float64)
    shown = (1 - share) * outside + share * inside
    shown[_edge(share[..., 0] > 0.5)] = colour
    return Image.fromarray(np.clip(shown, 0, 255).astype(np.uint8))


def _edge(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of the mask beside one that is not in it; the image's border is no edge."""
    padded = np.pad(mask, 1, mode="edge")
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask & ~inner


def _data_uri(picture: Image.Image) -> str:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
