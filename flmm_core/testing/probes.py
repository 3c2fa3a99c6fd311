"""What the checks look at: test images, what the language model is given, where it changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.types import BackboneBatch, ImageView
from flmm_core.segment import Segment

CAPTION = (
    Segment("the red circle", 0),
    Segment(" is left of ", None),
    Segment("a small blue star", 1),
)

Spot = tuple[int, int, int, int]
"""(y0, x0, y1, x1) in whole pixels."""


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """An image with soft colours and grain, the same for the same arguments."""
    rng = np.random.default_rng(seed)
    soft = rng.integers(60, 196, (5, 5, 3), dtype=np.uint8)
    base = np.asarray(Image.fromarray(soft).resize((width, height), Image.Resampling.BILINEAR))
    grain = rng.integers(-12, 13, (height, width, 1))
    return Image.fromarray((base.astype(np.int64) + grain).clip(0, 255).astype(np.uint8))


def repaint(image: Image.Image, spot: Spot) -> Image.Image:
    """The image with the pixels of a spot sent to the far end of their range."""
    pixels = np.array(image)
    y0, x0, y1, x1 = spot
    pixels[y0:y1, x0:x1] = np.where(pixels[y0:y1, x0:x1] < 128, 255, 0)
    return Image.fromarray(pixels)


class _Seen(Exception):  # noqa: N818
    """What was to be seen has been seen: the language model itself need not run."""


def decoder_inputs(backbone: Backbone, batch: BackboneBatch) -> dict[str, Any]:
    """What the VLM hands to its language model: `inputs_embeds` (B, S, D), masks, positions."""
    seen: dict[str, Any] = {}

    def keep(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise _Seen

    handle = backbone.vlm.get_decoder().register_forward_pre_hook(keep, with_kwargs=True)
    try:
        backbone.trace(batch)
    except _Seen:
        pass
    finally:
        handle.remove()
    return seen


@dataclass(frozen=True)
class Aim:
    """A spot to repaint, and the cell that must notice it.

    Attributes:
        cell: (row, column) in the view's grid.
        spot: Where to paint.
    """

    cell: tuple[int, int]
    spot: Spot


def aims(view: ImageView, image_hw: tuple[int, int], *, count: int, seed: int) -> list[Aim]:
    """Some spots of a view, each well within one cell but away from its middle.

    A spot is at most 0.4 cells wide and lies 0.05 cells from two sides of its cell, so a grid
    that is placed wrongly by half a cell, or read in a wrong order, answers with another cell.
    Cells of less than three pixels have no such spot.
    """
    h, w = view.token_index.shape
    y0, x0, y1, x1 = view.image_box
    height, width = image_hw
    cell_h, cell_w = (y1 - y0) / h * height, (x1 - x0) / w * width  # pixels
    cells = [(r, c) for r in range(h) for c in range(w)]
    found: list[Aim] = []
    for r, c in np.random.default_rng(seed).permutation(cells):
        low, right = len(found) // 2 % 2, len(found) % 2  # all four corners in turn
        top = y0 * height + (r + 0.05 + 0.5 * low) * cell_h
        left = x0 * width + (c + 0.05 + 0.5 * right) * cell_w
        spot = (ceil(top), ceil(left), int(top + 0.4 * cell_h), int(left + 0.4 * cell_w))
        inside = top >= 0 and left >= 0 and spot[2] <= height and spot[3] <= width
        if inside and spot[0] < spot[2] and spot[1] < spot[3] and len(found) < count:
            found.append(Aim((int(r), int(c)), spot))
    return found


def answers(
    backbone: Backbone, image: Image.Image, view: int, spots: Sequence[Spot]
) -> list[tuple[int, int]]:
    """For each spot, the cell of a view whose token changes most when it is repainted."""
    pictures = [image, *(repaint(image, spot) for spot in spots)]
    found: list[tuple[int, int]] = []
    embedded: list[Tensor] = []
    for changed in pictures:  # one by one: the memory of one image, however large
        inputs = backbone.prepare(changed, CAPTION)
        given = decoder_inputs(backbone, backbone.collate([inputs]))["inputs_embeds"][0]  # (S, D)
        index = inputs.views[view].token_index
        embedded.append(given[index.flatten()].unflatten(0, index.shape))  # (h, w, D)
    for now in embedded[1:]:
        change = torch.linalg.vector_norm((now - embedded[0]).float(), dim=-1)  # (h, w)
        row, column = divmod(int(change.argmax()), change.shape[1])
        found.append((row, column))
    return found
