"""Colors for maps of values: paints them over images."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

HEAT = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)])
"""Stops of the "inferno" color map, at even steps from 0 to 1."""
PAINTED = 1 << 20
"""About how many pixels are painted at a time."""


def paint_heat(image: Image.Image, values: NDArray[np.floating]) -> Image.Image:
    """Values in [0, 1], (h, w) of any size, over a dimmed gray image: bright where high."""
    cells = Image.fromarray(np.asarray(values, np.float32))
    heat = cells.resize(image.size, Image.Resampling.BICUBIC)
    painted = Image.new("RGB", image.size)
    rows = max(1, PAINTED // image.width)
    for top in range(0, image.height, rows):
        part = (0, top, image.width, min(top + rows, image.height))
        level = np.asarray(heat.crop(part)).clip(0, 1)[..., None]  # (rows, W, 1)
        gray = np.asarray(image.crop(part).convert("L"), np.float32)[..., None]
        mixed = gray + (0.45 + 0.45 * level) * (heat_colors(level[..., 0]) - gray)
        painted.paste(Image.fromarray(mixed.clip(0, 255).astype(np.uint8)), part)
    return painted


def heat_colors(values: NDArray[np.floating]) -> NDArray[np.floating]:
    """Values in [0, 1] -> (..., 3) the colors of `HEAT`, 0 to 255."""
    steps = np.linspace(0, 1, len(HEAT))
    return np.stack([np.interp(values, steps, part) for part in HEAT.T], axis=-1)
