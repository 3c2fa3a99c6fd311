"""Pictures with their masks laid over them and the phrases written below."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flmm_core.data import coco_masks
from flmm_core.data.pictures import read_picture
from flmm_core.data.sample import AnnotatedPicture, GroundedObject

LEAST_WIDTH, LINE, MARGIN, COLUMNS = 480, 18, 6, 96
IGNORED = (128, 128, 128)


def draw_preview(picture: AnnotatedPicture) -> Image.Image:
    """The picture with every mask tinted in the colour of its line of text below.

    Ignored pixels are grey; an object without a pixel is marked "(not there)". A caption stands
    above the phrases that it grounds.

    Raises:
        DataError: The picture or a mask cannot be read.
    """
    image = read_picture(picture.path, picture_hw=picture.picture_hw)
    pixels = np.asarray(image, dtype=np.float64)
    shown = 0.5 * pixels + 0.5 * pixels.mean(axis=-1, keepdims=True)
    lines: list[tuple[str, tuple[int, int, int]]] = []
    if picture.caption:
        text = "".join(piece.text for piece in picture.caption)
        lines += [(part, (0, 0, 0)) for part in _wrap(text)]
    for number, thing in enumerate(picture.objects):
        mask, colour = thing.read_mask(), _colour(number)
        for region, tint in ((thing.ignore, IGNORED), (mask, colour)):
            if region is not None:
                inside = coco_masks.decode(region)
                shown[inside] = 0.45 * shown[inside] + 0.55 * np.array(tint)
        lines += [(part, colour) for part in _wrap(_words(thing, bool(coco_masks.area(mask))))]
    return _with_lines(Image.fromarray(shown.clip(0, 255).astype(np.uint8)), lines)


def _words(thing: GroundedObject, there: bool) -> str:
    tags = f" [{', '.join(sorted(thing.tags))}]" if thing.tags else ""
    return " | ".join(thing.sentences) + tags + ("" if there else " (not there)")


def _wrap(text: str) -> list[str]:
    # Pillow's own font has Latin-1 only.
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return [plain[start : start + COLUMNS] for start in range(0, len(plain), COLUMNS)]


def _with_lines(
    image: Image.Image, lines: Sequence[tuple[str, tuple[int, int, int]]]
) -> Image.Image:
    scale = max(1, -(-LEAST_WIDTH // image.width))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)
    font = ImageFont.load_default(13)
    wide = [round(font.getlength(text)) + LINE + 2 * MARGIN for text, _ in lines]
    size = (max(image.width, *wide), image.height + 2 * MARGIN + LINE * len(lines))
    sheet = Image.new("RGB", size, "white")
    sheet.paste(image, (0, 0))
    draw = ImageDraw.Draw(sheet)
    for number, (text, colour) in enumerate(lines):
        top = image.height + MARGIN + LINE * number
        draw.rectangle((MARGIN, top + 3, MARGIN + 11, top + 14), fill=colour)
        draw.text((MARGIN + LINE, top), text, fill="black", font=font)
    return sheet


def _colour(number: int) -> tuple[int, int, int]:
    """Hues a golden ratio apart: neighbours differ."""
    red, green, blue = colorsys.hsv_to_rgb(number * 0.618034 % 1.0, 0.9, 0.95)
    return round(255 * red), round(255 * green), round(255 * blue)
