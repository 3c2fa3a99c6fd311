"""Paints masks, text, legends and grids of panels: all that flmm draws on images."""

from __future__ import annotations

import math
import os
import re
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, features

Color = tuple[int, int, int]

COLORS: tuple[Color, ...] = (
    (255, 0, 150), (0, 225, 255), (180, 255, 60), (165, 180, 255), (0, 255, 200),
    (255, 0, 255), (0, 105, 150), (255, 180, 210), (120, 90, 45), (75, 0, 255),
    (225, 240, 180), (135, 60, 90), (240, 180, 135), (15, 120, 105), (255, 150, 240),
    (45, 255, 120), (135, 135, 30), (240, 105, 150), (135, 105, 165), (195, 240, 120),
    (165, 0, 105), (120, 195, 165), (195, 105, 90), (0, 255, 0), (60, 195, 0),
)  # fmt: skip
"""Far apart in CIELAB (Delta E above 25), and from every color of `flmm_core.data.drawn`."""
TOLD_APART = 8
"""Masks whose colors are easy to tell apart; more are numbered in the image."""
OPACITY = 0.45
"""Of a mask's fill."""
PAINTED = 1 << 20
"""About how many pixels are painted at a time."""
INK, DIM, PAPER = (25, 28, 32), (105, 112, 120), (255, 255, 255)
PACKAGED = Path(__file__).parent / "assets" / "fonts" / "DejaVuSans.ttf"
"""Latin, Greek, Cyrillic, Hebrew, Arabic, Armenian, Georgian and symbols."""


def mask_color(number: int) -> Color:
    """The color of mask 0, 1, ...: the same wherever the mask is shown."""
    return COLORS[number % len(COLORS)]


# --- masks --------------------------------------------------------------------------------------


def paint_mask(
    image: Image.Image, mask: NDArray[np.bool_], color: Color, opacity: float = OPACITY
) -> Image.Image:
    """The image with a mask filled and outlined in a color.

    The outline has a dark edge outside and a light one inside, so that it shows on any image.

    Args:
        image: RGB; left as it is.
        mask: (h, w) bool, of any size; resampled to the image's.
        opacity: Of the fill, in [0, 1].
    """
    painted = image.copy()
    paint_onto(painted, mask, color, opacity)
    return painted


def paint_onto(
    image: Image.Image,
    mask: NDArray[np.bool_],
    color: Color,
    opacity: float = OPACITY,
    *,
    size: tuple[int, int] | None = None,
) -> None:
    """As `paint_mask`, in the image itself; `size`: only in its upper left (width, height)."""
    size = size or image.size
    stencil = Image.fromarray(mask.astype(np.uint8, copy=False) * np.uint8(255))
    if stencil.size != size:
        soft = stencil.resize(size, Image.Resampling.BILINEAR)
        stencil = soft.point([0] * 128 + [255] * 128)
    found = stencil.getbbox()
    if found is None:
        return
    width = max(1.0, max(size) / 300)
    margin = round(4 * width)
    left, top = (max(0, start - margin) for start in found[:2])
    right, bottom = (min(side, end + margin) for side, end in zip(size, found[2:], strict=True))
    rows = max(1, PAINTED // (right - left))
    for start in range(top, bottom, rows):
        end = min(start + rows, bottom)
        seen = (left, max(top, start - margin - 2), right, min(bottom, end + margin + 2))
        within = (0, start - seen[1], right - left, end - seen[1])
        _paint_rows(image, stencil.crop(seen), within, (left, start), (color, opacity, width))


def _paint_rows(
    image: Image.Image,
    stencil: Image.Image,
    within: tuple[int, int, int, int],
    place: tuple[int, int],
    style: tuple[Color, float, float],
) -> None:
    """Paint the box `within` a stencil at a place; what is around it is blurred into it."""
    color, opacity, width = style
    # Blurred, the mask rises from 0 to 255 across its edge, so a band of levels is a line along it.
    level = stencil.filter(ImageFilter.GaussianBlur(width)).crop(within)
    stencil = stencil.crop(within)

    def paint(color: Color, where: Image.Image, low: int, high: int, alpha: float) -> None:
        band = level.point(_band(low, high, alpha))
        image.paste(color, place, ImageChops.multiply(band, where))

    paint(color, stencil, 0, 256, opacity)
    paint((0, 0, 0), ImageChops.invert(stencil), 24, 256, 0.75)
    paint(PAPER, stencil, 222, 249, 0.85)
    paint(color, stencil, 0, 222, 1)


@cache
def _band(low: int, high: int, alpha: float) -> list[int]:
    """Of each level, how opaque a line is there."""
    return [round(255 * alpha * (low <= value < high)) for value in range(256)]


def fade(image: Image.Image) -> Image.Image:
    """The image in pale gray (RGB), a ground on which the colors of masks stand out."""
    pale = [90 + round(0.6 * value) for value in range(256)]
    return image.convert("L").point(pale).convert("RGB")


# --- text --------------------------------------------------------------------------------------


def text_image(
    text: str, size: int, *, color: Color = INK, width: int | None = None, lines: int = 1
) -> Image.Image:
    """Text in any script on a transparent ground, cropped to its longest line.

    Fonts are the packaged one, then those installed: the first that has the whole text, else the
    first for each run. A character that no font has is written as its code point, "⟨U+4E2D⟩".

    Args:
        text: Runs of white space count as one space.
        size: Font size in pixels.
        color: Emoji keep their own.
        width: Break lines at this many pixels.
        lines: Most lines; longer text ends in "…".
    """
    shown = _break(" ".join(text.split()), size, width or sys.maxsize, lines)
    height = line_height(size)
    longest = max(_length(line, size) for line in shown)
    image = Image.new("RGBA", (max(1, round(longest)), height * len(shown)), (*color, 0))
    for number, line in enumerate(shown):
        x = 0.0
        for font, scale, piece in _fonts_of(line, size):
            length, tall = font.getlength(piece), round(1.35 * font.size)
            run = Image.new("RGBA", (round(length) + 1, tall), (*color, 0))
            ImageDraw.Draw(run).text((0, font.size), piece, color, font, "ls", embedded_color=True)
            if scale != 1:
                run = run.resize((round(length * scale) + 1, round(1.35 * font.size * scale)))
            image.alpha_composite(run, (round(x), height * number))
            x += length * scale
    return image


def line_height(size: int) -> int:
    """Pixels from line to line."""
    return round(1.35 * size)


def _break(text: str, size: int, width: int, most: int) -> list[str]:
    """Lines of at most `width` pixels, broken at spaces, in long words and in Chinese."""
    lines = [""]
    for token in re.findall(r"[^\s\u2e80-\uffdc]{1,16} ?|\S ?", text):
        if lines[-1] and _length((lines[-1] + token).rstrip(), size) > width:
            lines.append("")
        lines[-1] += token
    if len(lines) > most:
        lines[most - 1 :] = [lines[most - 1].rstrip()[:-1] + "…"]
    return [line.rstrip() for line in lines]


def _length(text: str, size: int) -> float:
    """Width in pixels."""
    return sum(font.getlength(piece) * scale for font, scale, piece in _fonts_of(text, size))


def _fonts_of(text: str, size: int) -> list[tuple[ImageFont.FreeTypeFont, float, str]]:
    """The text in pieces, each with its font and the scale of the font's pixels."""
    return [(*_font(path, size), piece) for path, piece in _runs(text)]


@lru_cache(maxsize=4096)
def _runs(text: str) -> tuple[tuple[Path, str], ...]:
    """The text in pieces, each with a font that has all of it."""
    if (whole := _font_of(text)) is not None:
        return ((whole, text),)
    runs: list[tuple[Path, str]] = []
    for char in text:
        path, shown = _font_of(char), char
        if path is None:
            path, shown = PACKAGED, f"⟨U+{ord(char):04X}⟩"
        elif runs and unicodedata.category(char)[0] in "MC" and _has(runs[-1][0], char):
            path = runs[-1][0]  # marks and joiners stay with their letter
        if runs and runs[-1][0] == path:
            shown = runs.pop()[1] + shown
        runs.append((path, shown))
    return tuple(runs)


@lru_cache(maxsize=4096)
def _font_of(text: str) -> Path | None:
    """The first font that has every character of a text."""
    return next((path for path in _fonts() if all(_has(path, char) for char in text)), None)


@cache
def _fonts() -> tuple[Path, ...]:
    """The packaged font, then installed ones: upright and of normal weight first."""
    home, windows = (Path(os.environ.get(name, "/nonexistent")) for name in ("HOME", "WINDIR"))
    roots = ("usr/share/fonts", "usr/local/share/fonts", "Library/Fonts", "System/Library/Fonts")
    own = (".fonts", ".local/share/fonts", "Library/Fonts")
    folders = [*(Path("/", root) for root in roots), *(home / folder for folder in own)]
    files = [file for f in (*folders, windows / "Fonts") for file in f.rglob("*.[to]t[fc]")]
    odd = re.compile("bold|italic|oblique|light|thin|black|condensed|mono|serif")

    def rank(path: Path) -> tuple[bool, bool, str]:
        name = path.stem.lower()
        return "unifont" in name or "lastresort" in name, bool(odd.search(name)), name

    return (PACKAGED, *sorted(files, key=rank))


@lru_cache(maxsize=512)
def _font(path: Path, size: int, shaped: bool = True) -> tuple[ImageFont.FreeTypeFont, float]:
    """A font, and the scale of its pixels: a bitmap font has but one size."""
    engine = None if shaped else ImageFont.Layout.BASIC
    for strike in (size, 109, 136, 160):
        try:
            return ImageFont.truetype(path, strike, layout_engine=engine), size / strike
        except OSError:
            continue
    raise OSError(f"{path} is no font of a known size")


@lru_cache(maxsize=65536)
def _has(path: Path, char: str) -> bool:
    """Whether a font draws a character as anything but its sign for a missing one."""
    try:
        missing = _glyph(path, "\uffff")
    except OSError:
        return False
    category = unicodedata.category(char)
    if char.isspace() or category == "Cf" or "\ufe00" <= char <= "\ufe0f":
        return True  # needs no glyph
    # Without libraqm, letters would not be joined, nor read from right to left.
    complex_script = "\u0590" <= char <= "\u109f" or "\u1780" <= char <= "\u17ff"
    if category in ("Cc", "Cs") or (complex_script and not features.check("raqm")):
        return False
    return _glyph(path, char) != missing


@lru_cache(maxsize=4096)
def _glyph(path: Path, char: str) -> int:
    """The hash of a character's pixels."""
    font, _ = _font(path, 24, shaped=False)
    image = Image.new("RGBA", (round(2 * font.size), round(2 * font.size)))
    ImageDraw.Draw(image).text((font.size / 2, 0), char, INK, font, embedded_color=True)
    return hash(image.tobytes())


# --- legends and panels ------------------------------------------------------------------------


@dataclass(frozen=True)
class LegendEntry:
    """One mask of a legend."""

    color: Color
    phrase: str
    score: str


def add_legend(image: Image.Image, entries: Sequence[LegendEntry]) -> Image.Image:
    """A new image: the given one above a legend, numbered from 1, in as many columns as fit."""
    if not entries:
        return image.copy()
    size = letters(image.size)
    gap = size // 2
    rows = [_legend_row(number, entry, size) for number, entry in enumerate(entries, start=1)]
    widest = max(row.width for row in rows) + 2 * gap
    width = max(image.width, widest)
    columns = width // widest
    length = math.ceil(len(rows) / columns)
    parts = [rows[first : first + length] for first in range(0, len(rows), length)]
    height = max(sum(row.height + gap // 2 for row in part) for part in parts) + 2 * gap
    sheet = Image.new("RGB", (width, image.height + height), PAPER)
    sheet.paste(image)
    for column, part in enumerate(parts):
        top = image.height + gap
        for row in part:
            sheet.paste(row, (gap + width // columns * column, top))
            top += row.height + gap // 2
    return sheet


def add_numbers(
    sheet: Image.Image, size: tuple[int, int], marks: Mapping[int, tuple[Color, int, int]]
) -> None:
    """Put the legend's numbers at the masks, if they are more than `TOLD_APART`.

    Args:
        sheet: From `add_legend`; drawn on.
        size: (width, height) of the image without its legend.
        marks: By number, the color of a mask and x, y of its number.
    """
    if len(marks) <= TOLD_APART:
        return
    for number, (color, x, y) in marks.items():
        badge = _badge(number, color, letters(size) - 2)
        x = min(x - badge.width // 2, size[0] - badge.width)
        y = min(y - badge.height // 2, size[1] - badge.height)
        sheet.paste(badge, (max(0, x), max(0, y)))


def letters(size: tuple[int, int]) -> int:
    """The size of letters beside an image of (width, height)."""
    return max(13, round(math.sqrt(size[0] * size[1]) / 55))


@lru_cache(maxsize=64)
def _legend_row(number: int, entry: LegendEntry, size: int) -> Image.Image:
    """To be pasted only."""
    badge = _badge(number, entry.color, size)
    phrase = text_image(entry.phrase, size, width=18 * size, lines=3)
    score = text_image(entry.score, size, color=DIM)
    third = 2 * size + phrase.width + size // 2
    row = Image.new("RGB", (third + score.width, phrase.height), PAPER)
    row.paste(badge, ((2 * size - badge.width) // 2 - size // 5, 0))
    row.paste(phrase, (2 * size, 0), phrase)
    row.paste(score, (third, 0), score)
    return row


@lru_cache(maxsize=64)
def _badge(number: int, color: Color, size: int) -> Image.Image:
    """A number on a swatch of its color; to be copied from only."""
    light = np.dot((np.array(color) / 255) ** 2.2, (0.21, 0.72, 0.07))
    ink = INK if light > 0.18 else PAPER
    label = text_image(str(number), round(0.85 * size), color=ink)
    badge = Image.new("RGB", (round(1.6 * size), round(1.25 * size)), color)
    ImageDraw.Draw(badge).rectangle((0, 0, badge.width - 1, badge.height - 1), outline=INK)
    place = ((badge.width - label.width) // 2, (badge.height - label.height) // 2)
    badge.paste(label, place, label)
    return badge


def draw_panels(
    panels: Sequence[tuple[Image.Image, str]],
    columns: int,
    side: int,
    titles: Sequence[str] = (),
    *,
    lines: int = 2,
) -> Image.Image:
    """Images in a grid on white, row by row, each with a caption of at most `lines` lines below it.

    Images are scaled to a longest side of `side` pixels. `titles` are headings of the columns.
    """
    size, gap = 14, 9
    heads = [text_image(title, size, color=DIM) for title in titles]
    cells = [
        (scale_to(image, side), text_image(caption, size, width=side, lines=lines))
        for image, caption in panels
    ]
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    tops = [gap + (line_height(size) + gap // 2 if heads else 0)]
    for row in rows:
        tops.append(tops[-1] + max(image.height + text.height for image, text in row) + 2 * gap)
    extent = gap + (side + gap) * min(columns, len(panels)), tops[-1] - gap
    sheet = Image.new("RGB", extent, PAPER)
    for column, head in enumerate(heads):
        sheet.paste(head, (gap + (side + gap) * column, gap), head)
    for top, row in zip(tops, rows, strict=False):
        for column, (image, text) in enumerate(row):
            x = gap + (side + gap) * column
            sheet.paste(image, (x, top))
            sheet.paste(text, (x, top + image.height + gap // 2), text)
    return sheet


def scale_to(image: Image.Image, side: int) -> Image.Image:
    """The image as RGB with its longest side `side` pixels long."""
    scale = side / max(image.size)
    extent = max(1, round(image.width * scale)), max(1, round(image.height * scale))
    return image.convert("RGB").resize(extent, Image.Resampling.LANCZOS)
