"""Test images, and which cell of a view responds when a spot of the image is repainted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from math import ceil
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from flmm_core.errors import FlmmError
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.probe import CAPTION as CAPTION
from flmm_core.pipeline.backbone.probe import decoder_inputs
from flmm_core.pipeline.types import BackboneInputs, ImageView
from flmm_core.segment import Segment
from flmm_core.testing.promise import BrokenPromiseError

ODD_CAPTION = (
    Segment("there  is "),
    Segment(" cafe\u0301 no. 7 ", 1),
    Segment("and "),
    Segment("🐱", 0),
    Segment(" 's ball"),
)

CAPTIONS = (
    CAPTION,
    ODD_CAPTION,
    (Segment("A photo of ", None), Segment("my two dogs ", 1), Segment(" and "), Segment("it", 0)),
)

SHAPES = ((96, 144), (300, 60), (131, 133), (200, 120), (60, 300))
"""(H, W) of the test images: wide, tall, odd, and up to 5:1."""
LARGE_SHAPES = ((480, 640), (1100, 1500), (1333, 500), (611, 2101))
"""(H, W) of photos: models shrink, cut or tile them."""

MEASURED_SHAPES = (*SHAPES[1:], (480, 640), (1100, 700))

Cell = tuple[int, int]
"""(row, column) in a view's grid."""

Spot = tuple[int, int, int, int]
"""(y0, x0, y1, x1) in whole pixels."""

Mask = NDArray[np.bool_]
"""(H, W)."""


_OTHER: ContextVar[int] = ContextVar("other_images", default=0)


@contextmanager
def other_images(seed: int) -> Iterator[None]:
    """In the block, `picture` gives other images; with 0 the usual ones."""
    token = _OTHER.set(seed)
    try:
        yield
    finally:
        _OTHER.reset(token)


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """An image with soft colors and grain, the same for the same arguments."""
    rng = np.random.default_rng(seed + 1000 * _OTHER.get())
    soft = rng.integers(60, 196, (5, 5, 3), dtype=np.uint8)
    base = np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BILINEAR))
    grain = rng.integers(-12, 13, (height, width, 1))
    return Image.fromarray((base.astype(np.int64) + grain).clip(0, 255).astype(np.uint8))


def prepared(
    backbone: Backbone,
    image: Image.Image,
    where: str,
    caption: Sequence[Segment] = CAPTION,
    **settings: Any,
) -> BackboneInputs:
    """A sample, as `Backbone.prepare` gives it; `BrokenPromiseError` if that refuses it."""
    try:
        return backbone.prepare(image, caption, **settings)
    except FlmmError as error:
        raise BrokenPromiseError(where, "a sample", str(error)) from error


def readings(image: Image.Image) -> Iterator[tuple[str, Image.Image, Image.Image]]:
    """(name, an image of another kind, the upright RGB image that it shows) of an RGB image."""
    gray = image.convert("L")
    yield "gray", gray, Image.merge("RGB", [gray] * 3)
    values = np.asarray(gray).astype(np.uint16) * 257
    yield "16-bit", Image.fromarray(values), Image.merge("RGB", [gray] * 3)
    dots = gray.convert("1")
    yield "black and white", dots, dots.convert("RGB")
    palette = image.quantize(32)
    yield "palette", palette, palette.convert("RGB")
    opacity = Image.linear_gradient("L").resize(image.size)
    clear = image.copy()
    clear.putalpha(opacity)
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), clear)
    yield "transparent (RGBA)", clear, on_white.convert("RGB")
    stamp = Image.merge("LA", [gray, opacity])
    on_white = Image.alpha_composite(Image.new("RGBA", image.size, "white"), stamp.convert("RGBA"))
    yield "transparent gray (LA)", stamp, on_white.convert("RGB")
    for orientation, turn in (
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ):
        stored = image.transpose(turn)
        stored.getexif()[0x0112] = orientation
        yield f"turned (EXIF orientation {orientation})", stored, image


def repainted_cells(
    backbone: Backbone, image: Image.Image, view: int, *, count: int = 8, seed: int = 1
) -> list[tuple[Cell, Cell]]:
    """Repaint spots of an image one by one: (cell of the spot, cell whose token changed most).

    The tokens of the view with index `view`, as the language model receives them, are compared. A
    view with fewer than `count` cells of three pixels or more has fewer spots; `seed` selects them.

    Some tokens of a trained model answer to any change more than others do. So, before another
    cell is named, all but the spot's cell is repainted, too, and what counts is how much more a
    token changes with the spot than with the rest.
    """
    where = backbone.prepare(image, CAPTION).views[view]
    before = _embedded_cells(backbone, image, view)  # (h, w, D)

    def moved(mask: Mask) -> Tensor:
        """(h, w) how far each cell's token moves if some pixels are repainted."""
        pixels = np.array(image)
        pixels[mask] = np.where(pixels[mask] < 128, 255, 0)
        change = _embedded_cells(backbone, Image.fromarray(pixels), view) - before
        distance: Tensor = torch.linalg.vector_norm(change.float(), dim=-1)
        return distance

    pairs = []
    for cell, spot in _spots(where, image, count, seed):
        change = moved(_within(image, spot))
        if _highest(change) != cell:
            rest = moved(~_within(image, _pixels(where, image, cell)))
            change = change / rest.clamp(min=1e-12)
        pairs.append((cell, _highest(change)))
    return pairs


def _highest(values: Tensor) -> Cell:
    row, column = divmod(int(values.argmax()), values.shape[1])
    return row, column


def _within(image: Image.Image, spot: Spot) -> Mask:
    y0, x0, y1, x1 = spot
    mask = np.zeros((image.height, image.width), bool)
    mask[max(0, y0) : y1, max(0, x0) : x1] = True
    return mask


def _pixels(view: ImageView, image: Image.Image, cell: Cell) -> Spot:
    """The pixels of a cell, those at its edges rounded."""
    h, w = view.token_index.shape
    y0, x0, y1, x1 = view.image_box
    rows = [round((y0 + (cell[0] + end) / h * (y1 - y0)) * image.height) for end in (0, 1)]
    columns = [round((x0 + (cell[1] + end) / w * (x1 - x0)) * image.width) for end in (0, 1)]
    return rows[0], columns[0], rows[1], columns[1]


def _embedded_cells(backbone: Backbone, image: Image.Image, view: int) -> Tensor:
    inputs = backbone.prepare(image, CAPTION)
    embedded = decoder_inputs(backbone, backbone.collate([inputs]))["inputs_embeds"][0]  # (S, D)
    cells: Tensor = embedded[inputs.views[view].token_index]  # (h, w, D)
    return cells


def _spots(view: ImageView, image: Image.Image, count: int, seed: int) -> list[tuple[Cell, Spot]]:
    """Spots that each lie well within one cell but off its center.

    A spot is at most 0.4 cells wide and lies 0.05 cells from two sides of its cell, so in a grid
    that is shifted by half a cell, or read in the wrong order, another cell responds.
    """
    h, w = view.token_index.shape
    y0, x0, y1, x1 = view.image_box
    cell_h, cell_w = (y1 - y0) / h * image.height, (x1 - x0) / w * image.width  # pixels
    cells = [(r, c) for r in range(h) for c in range(w)]
    found: list[tuple[Cell, Spot]] = []
    for r, c in np.random.default_rng(seed).permutation(cells):
        low, right = len(found) // 2 % 2, len(found) % 2  # all four corners in turn
        top = y0 * image.height + (r + 0.05 + 0.5 * low) * cell_h
        left = x0 * image.width + (c + 0.05 + 0.5 * right) * cell_w
        spot = (ceil(top), ceil(left), int(top + 0.4 * cell_h), int(left + 0.4 * cell_w))
        inside = top >= 0 and left >= 0 and spot[2] <= image.height and spot[3] <= image.width
        if inside and spot[0] < spot[2] and spot[1] < spot[3] and len(found) < count:
            found.append(((int(r), int(c)), spot))
    return found
