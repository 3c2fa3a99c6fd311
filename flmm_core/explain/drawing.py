"""Maps over images, as PNG files show them."""

from __future__ import annotations

import numpy as np
from PIL import Image

from flmm_core.explain.maps import Floats
from flmm_core.painting import DIM, INK, PAPER, letters, text_image
from flmm_core.pipeline.heat import heat_colors, paint_heat


def overlay(image: Image.Image, values: Floats, top: float | None = None) -> Image.Image:
    """A map (h, w) over the dimmed image, at its size; `top` is shown brightest, else the peak."""
    top = float(values.max()) if top is None else top
    return paint_heat(image, values / max(top, 1e-12))


def titled(picture: Image.Image, words: str, way: str, ends: tuple[str, str]) -> Image.Image:
    """A picture above its words, the way of looking, and what the colors mean.

    Args:
        ends: What the darkest and the brightest color stand for.
    """
    size = letters(picture.size)
    gap = size // 2
    colors = heat_colors(np.linspace(0, 1, 6 * size))[None].repeat(size, 0)
    scale = Image.fromarray(colors.round().astype(np.uint8))
    low, high = (text_image(end, size, color=DIM) for end in ends)
    width = max(picture.width, low.width + scale.width + high.width + 4 * gap)
    name = text_image(words, round(1.2 * size), color=INK, width=width - 2 * gap, lines=2)
    about = text_image(way, size, color=DIM, width=width - 2 * gap, lines=4)
    height = name.height + about.height + low.height + 4 * gap
    sheet = Image.new("RGB", (width, picture.height + height), PAPER)
    sheet.paste(picture)
    top = picture.height + gap
    for text in (name, about):
        sheet.paste(text, (gap, top), text)
        top += text.height + gap // 2
    sheet.paste(low, (gap, top), low)
    sheet.paste(scale, (2 * gap + low.width, top + (low.height - scale.height) // 2))
    sheet.paste(high, (3 * gap + low.width + scale.width, top), high)
    return sheet
