"""Images that show the flow: image, attention, coarse mask, refined mask and truth."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_PICTURE, AttentionMaps

SIDE, MARGIN, LINE = 192, 8, 20
COLUMNS = ("picture", "attention", "coarse mask", "refined mask", "truth")
PREDICTED, TRUE = (255, 64, 129), (0, 200, 120)


def draw_sheet(
    image: Image.Image,
    phrases: Sequence[str],
    maps: AttentionMaps,
    coarse_logits: Tensor,
    logits: Tensor,
    truth: Tensor | None = None,
) -> Image.Image:
    """One row a phrase, side by side.

    Args:
        image: The image.
        phrases: P of them.
        maps: Their attention maps; the mean over the three most focused channels is shown.
        coarse_logits: (P, h, w) covering exactly the image.
        logits: (P, H, W) at the image's size.
        truth: (P, H, W) bool, or None where it is unknown: the column is left out.
    """
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    columns = COLUMNS if truth is not None else COLUMNS[:-1]
    step_x, step_y = size[0] + MARGIN, size[1] + LINE + MARGIN
    width = MARGIN + len(columns) * step_x
    sheet = Image.new("RGB", (width, LINE + MARGIN + len(phrases) * step_y), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for column, title in enumerate(columns):
        draw.text((MARGIN + column * step_x, MARGIN // 2), title, fill="black", font=font)
    for row, phrase in enumerate(phrases):
        top = LINE + MARGIN + row * step_y
        cells = [
            small,
            _heat(small, attention_image(maps, row)),
            _tint(small, coarse_logits[row].sigmoid() > 0.5, PREDICTED),
            _tint(small, logits[row] > 0, PREDICTED),
        ]
        if truth is not None:
            cells.append(_tint(small, truth[row], TRUE))
        for column, cell in enumerate(cells):
            sheet.paste(cell, (MARGIN + column * step_x, top))
        words = phrase.encode("latin-1", "replace").decode("latin-1")
        draw.text((MARGIN, top + size[1] + 2), words, fill="black", font=font)
    return sheet


def attention_image(maps: AttentionMaps, phrase: int, channels: int = 3) -> Tensor:
    """(h, w) in [0, 1] covering exactly the image: the most focused channels' mean.

    A map's focus is the share of its mass in the heaviest tenth of its cells.
    """
    flat = maps.maps[phrase].flatten(1)  # (C, h*w)
    heaviest = flat.topk(max(1, flat.shape[1] // 10), dim=1).values.sum(1)
    mean = maps.maps[phrase, heaviest.topk(min(channels, len(flat))).indices].mean(0)
    h, w = mean.shape
    shown = resample(mean[None, None], maps.image_box, WHOLE_PICTURE, (h, w))[0, 0]
    shown = shown - shown.amin()
    return shown / shown.amax().clamp(min=1e-12)


def _heat(picture: Image.Image, values: Tensor) -> Image.Image:
    """Values in [0, 1] as warmth over a grey image."""
    size = (picture.height, picture.width)
    warm = F.interpolate(values[None, None].float().cpu(), size, mode="bilinear")[0, 0].numpy()
    colours = np.stack([255 * warm, 190 * warm**2, 60 * (1 - warm)], axis=-1)
    grey = np.asarray(picture.convert("L").convert("RGB"), dtype=np.float64)
    return _image(0.35 * grey + 0.65 * colours)


def _tint(picture: Image.Image, mask: Tensor, colour: tuple[int, int, int]) -> Image.Image:
    size = (picture.height, picture.width)
    share = F.interpolate(mask[None, None].to(torch.float32).cpu(), size, mode="area")[0, 0].numpy()
    pixels = np.asarray(picture, dtype=np.float64)
    inside = 0.6 * share[..., None]
    return _image((1 - inside) * (0.55 * pixels + 90) + inside * np.array(colour, dtype=np.float64))


def _image(values: NDArray[np.float64]) -> Image.Image:
    return Image.fromarray(np.clip(values, 0, 255).astype(np.uint8))
