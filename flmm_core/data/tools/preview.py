"""Images with their masks laid over them, a panel each phrase."""

from __future__ import annotations

import textwrap

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from flmm_core.data import rle
from flmm_core.data.images import read_image
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask

SIDE, LINE, MARGIN, COLUMNS = 280, 16, 8, 4
INSIDE, IGNORED = (0, 200, 120), (230, 60, 60)


def draw_preview(picture: AnnotatedImage) -> Image.Image:
    """The image, and beside it once for every object: its mask green, ignored pixels red.

    Below each stand its phrases and tags, "(not there)" if no pixel is inside; below the image
    its caption.

    Raises:
        DataError: The image or a mask cannot be read.
    """
    image = read_image(picture.path, image_hw=picture.image_hw)
    pixels = np.asarray(image, dtype=np.float64)
    caption = "".join(piece.text for piece in picture.caption)
    panels = [(image, _wrap(caption or picture.file_name))]
    for thing in picture.objects:
        mask = thing.read_mask()
        panels.append((_overlay(pixels, mask, thing.ignore), _wrap(_words(thing, mask))))
    return _grid(panels)


def _overlay(pixels: NDArray[np.float64], mask: Mask, ignored: Mask | None) -> Image.Image:
    shown = 0.2 * pixels + 0.8 * pixels.mean(axis=-1, keepdims=True)
    for region, colour in ((ignored, IGNORED), (mask, INSIDE)):
        if region is not None:
            inside = rle.decode(region)
            shown[inside] = 0.35 * shown[inside] + 0.65 * np.array(colour)
    return Image.fromarray(shown.clip(0, 255).astype(np.uint8))


def _words(thing: GroundedObject, mask: Mask) -> str:
    tags = f" [{', '.join(sorted(thing.tags))}]" if thing.tags else ""
    return " | ".join(thing.sentences) + tags + ("" if rle.area(mask) else " (not there)")


def _wrap(text: str) -> list[str]:
    # Pillow's own font has Latin-1 only.
    return textwrap.wrap(text.encode("latin-1", "replace").decode("latin-1"), 40)


def _grid(panels: list[tuple[Image.Image, list[str]]]) -> Image.Image:
    scale = SIDE / max(panels[0][0].size)
    width, height = (max(1, round(scale * side)) for side in panels[0][0].size)
    step_x = SIDE + MARGIN
    step_y = height + MARGIN + LINE * max(len(lines) for _, lines in panels)
    rows = -(-len(panels) // COLUMNS)
    size = (MARGIN + step_x * min(len(panels), COLUMNS), MARGIN + step_y * rows)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    for number, (image, lines) in enumerate(panels):
        left = MARGIN + step_x * (number % COLUMNS)
        top = MARGIN + step_y * (number // COLUMNS)
        sheet.paste(image.resize((width, height), Image.Resampling.LANCZOS), (left, top))
        for line, text in enumerate(lines):
            draw.text((left, top + height + LINE * line), text, fill="black", font=font)
    return sheet
