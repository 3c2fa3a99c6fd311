"""Masks, text and legends as they are painted."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageFont

from flmm_core import painting
from flmm_core.data.drawn.scenes import COLORS as DRAWN
from flmm_core.painting import (
    COLORS,
    INK,
    PACKAGED,
    LegendEntry,
    add_legend,
    add_numbers,
    draw_panels,
    mask_color,
    paint_mask,
    paint_onto,
    text_image,
)
from flmm_core.pipeline import heat
from flmm_core.pipeline.heat import paint_heat


def half(height: int = 40, width: int = 60) -> NDArray[np.bool_]:
    """A mask of the left half."""
    mask = np.zeros((height, width), dtype=bool)
    mask[:, : width // 2] = True
    return mask


def pixels(image: Image.Image) -> NDArray[np.int64]:
    return np.asarray(image.convert("RGB")).astype(np.int64)


# --- masks ---------------------------------------------------------------------------------------


def lab(color: tuple[int, int, int]) -> NDArray[np.float64]:
    linear = (np.array(color) / 255) ** 2.2
    xyz = np.array([[0.412, 0.358, 0.180], [0.213, 0.715, 0.072], [0.019, 0.119, 0.950]]) @ linear
    x, y, z = np.cbrt(xyz / (0.95, 1, 1.089))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_no_two_masks_and_no_drawn_shape_share_a_color() -> None:
    assert len(COLORS) == 25
    for first, second in combinations([*COLORS, *DRAWN.values()], 2):
        assert first in DRAWN.values() or np.linalg.norm(lab(first) - lab(second)) > 25
    assert mask_color(0) == mask_color(25)


@pytest.mark.parametrize("ground", [(0, 0, 0), (255, 255, 255), COLORS[0]])
def test_an_outline_shows_on_any_ground(ground: tuple[int, int, int]) -> None:
    image = Image.new("RGB", (60, 40), ground)
    row = pixels(paint_mask(image, half(), mask_color(0)))[20]
    around = np.abs(row[25:35] - np.array(ground)).sum(axis=1)
    assert around.max() > 200
    assert image.getpixel((0, 0)) == ground  # the image itself stays as it was


def test_only_the_mask_and_a_line_around_it_change() -> None:
    image = Image.new("RGB", (60, 40), (100, 100, 100))
    changed = (pixels(paint_mask(image, half(), (0, 255, 0))) != 100).any(axis=2)
    assert changed[:, :30].all()
    assert not changed[:, 34:].any()
    # The border of the image is no edge of the mask.
    row = pixels(paint_mask(image, half(), (0, 255, 0)))[:, 10]
    assert (row == row[20]).all()


def test_a_mask_of_another_size_is_scaled_and_an_empty_one_paints_nothing() -> None:
    image = Image.new("RGB", (60, 40), (100, 100, 100))
    painted = pixels(paint_mask(image, half(4, 6), (0, 255, 0)))
    assert (painted[:, 5] != 100).any(axis=1).all()
    assert (painted[:, 50] == 100).all()
    assert paint_mask(image, np.zeros((40, 60), dtype=bool), (0, 255, 0)) == image


def test_heat_is_bright_where_values_are_high() -> None:
    image = Image.new("RGB", (80, 40), (90, 20, 200))
    shown = pixels(paint_heat(image, np.linspace(0, 1, 8)[None].repeat(4, axis=0))).sum(axis=2)
    assert (np.diff(shown[20]) >= 0).all()
    assert shown[20, -1] - shown[20, 0] > 300


# --- text ----------------------------------------------------------------------------------------


@pytest.fixture
def packaged_only(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No font is installed."""
    yield from _fonts_of(monkeypatch, (PACKAGED,))


def _fonts_of(monkeypatch: pytest.MonkeyPatch, fonts: tuple[Path, ...]) -> Iterator[None]:
    def forget() -> None:
        painting._runs.cache_clear()
        painting._font_of.cache_clear()

    monkeypatch.setattr(painting, "_fonts", lambda: fonts)
    forget()
    yield
    forget()


def shown(text: str) -> str:
    return "".join(piece for _, piece in painting._runs(text))


@pytest.mark.parametrize("text", ["café", "Ελλάδα", "Кошка", "tiếng Việt", "Łódź", "e\u0301", "😀"])
def test_the_packaged_font_has_many_scripts(text: str, packaged_only: None) -> None:
    assert painting._runs(text) == ((PACKAGED, text),)
    assert np.asarray(text_image(text, 20))[..., 3].any()


@pytest.mark.parametrize(
    ("text", "instead"),
    [
        ("中文 cat", "⟨U+4E2D⟩⟨U+6587⟩ cat"),
        ("हि", "⟨U+0939⟩⟨U+093F⟩"),
        ("a 🐶!", "a ⟨U+1F436⟩!"),
        ("\x07\ud83d", "⟨U+0007⟩⟨U+D83D⟩"),
        ("\ue000\uffff", "⟨U+E000⟩⟨U+FFFF⟩"),
    ],
)
def test_what_no_font_has_is_written_as_code_points(
    text: str, instead: str, packaged_only: None
) -> None:
    assert shown(text) == instead
    assert text_image(text, 20).width > 20


def test_arabic_is_joined_or_written_as_code_points(
    packaged_only: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert shown("كلب") in ("كلب", "⟨U+0643⟩⟨U+0644⟩⟨U+0628⟩")
    painting._has.cache_clear()
    painting._runs.cache_clear()
    painting._font_of.cache_clear()
    monkeypatch.setattr(painting.features, "check", lambda name: False)
    assert shown("كلب") == "⟨U+0643⟩⟨U+0644⟩⟨U+0628⟩"
    painting._has.cache_clear()


def test_installed_fonts_fill_the_gaps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Pillow's own font stands for one that is installed; a file that is no font does no harm.
    own = ImageFont.load_default(20).path
    (tmp_path / "own.ttf").write_bytes(own.getvalue())
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    fonts = (tmp_path / "broken.ttf", tmp_path / "own.ttf", PACKAGED)
    for _ in _fonts_of(monkeypatch, fonts):
        assert painting._runs("cat") == ((fonts[1], "cat"),)
        assert painting._runs("кот") == ((PACKAGED, "кот"),)
        mixed = painting._runs("cat кот\u0301中")
        assert [piece for _, piece in mixed] == ["cat ", "кот\u0301⟨U+4E2D⟩"]


def test_installed_fonts_are_found_and_upright_ones_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ".local/share/fonts/deep"
    folder.mkdir(parents=True)
    for name in ("Aa-Bold.ttf", "Zz.otf", "Unifont.ttf", "notes.txt"):
        shutil.copy(PACKAGED, folder / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    found = [path.name for path in painting._fonts.__wrapped__() if tmp_path in path.parents]
    assert found == ["Zz.otf", "Aa-Bold.ttf", "Unifont.ttf"]


def test_long_text_is_broken_and_cut() -> None:
    words = "one two three four five six seven eight nine ten"
    for text in (words, words.replace(" ", ""), "字" * 60):
        image = text_image(text, 14, width=130, lines=2)
        assert image.width <= 130 + 14
        assert image.height == 2 * text_image("a", 14).height
    assert text_image("a  \n b", 14).size == text_image("a b", 14).size
    assert text_image("", 14).width == 1


def test_painting_loads_neither_torch_nor_matplotlib() -> None:
    code = "import sys, flmm_core.painting; print({'torch', 'matplotlib'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# --- legends and panels --------------------------------------------------------------------------


def entries(count: int) -> list[LegendEntry]:
    return [LegendEntry(mask_color(n), f"phrase number {n}", "0.50") for n in range(count)]


@pytest.mark.parametrize(("width", "count"), [(640, 25), (640, 3), (48, 25), (48, 1)])
def test_a_legend_names_every_mask_below_the_image(width: int, count: int) -> None:
    image = Image.new("RGB", (width, 200), (100, 100, 100))
    sheet = add_legend(image, entries(count))
    assert sheet.width == width or width < 100 < sheet.width < 300
    assert (pixels(sheet)[:200, :width] == 100).all()
    colors = {tuple(color) for color in pixels(sheet)[200:].reshape(-1, 3).tolist()}
    assert {mask_color(n) for n in range(count)} <= colors
    if width == 640:
        assert sheet.height - 200 < 300  # 25 phrases take a screen's height at most
    add_numbers(sheet, image.size, {n: (mask_color(n), 10 + 20 * n, 100) for n in range(count)})
    above = pixels(sheet)[:200, :width]
    assert (above == 100).all() == (count <= painting.TOLD_APART)


def test_an_empty_legend_is_the_image() -> None:
    image = Image.new("RGB", (20, 10))
    assert add_legend(image, []) == image


def test_a_mask_of_a_part_is_painted_there_as_alone() -> None:
    image = Image.effect_noise((60, 40), 60).convert("RGB")
    sheet = add_legend(image, entries(2))
    paint_onto(sheet, half(), mask_color(0), size=image.size)
    alone = paint_mask(image, half(), mask_color(0))
    assert np.array_equal(pixels(sheet)[:40, :60], pixels(alone))


def test_panels_stand_in_a_grid_with_captions_and_titles() -> None:
    images = [Image.new("RGB", size, "red") for size in ((40, 20), (10, 20), (40, 20))]
    sheet = draw_panels([(image, "words") for image in images], 2, 50, ("left", "right"))
    red = (pixels(sheet) == (255, 0, 0)).all(axis=2)
    assert red.sum() == 50 * 25 + 25 * 50 + 50 * 25
    ink = (np.abs(pixels(sheet) - np.array(INK)).sum(axis=2) < 60).sum()
    assert ink > 50
    assert draw_panels([], 2, 50, ("left", "right")).height > 10  # no phrases, but headings


def test_a_size_of_a_bitmap_font_is_met(monkeypatch: pytest.MonkeyPatch) -> None:
    true = ImageFont.truetype

    def one_size(path: Path, size: int, **arguments: object) -> ImageFont.FreeTypeFont:
        if size != 109:
            raise OSError("invalid pixel size")
        return true(path, size, **arguments)  # type: ignore[arg-type]

    painting._font.cache_clear()
    expected = text_image("Hxg", 20)
    painting._font.cache_clear()
    monkeypatch.setattr(ImageFont, "truetype", one_size)
    found = text_image("Hxg", 20)
    painting._font.cache_clear()
    assert found.size == pytest.approx(expected.size, abs=2)
    inked = [np.asarray(image)[..., 3].astype(float) for image in (found, expected)]
    assert inked[0].sum() == pytest.approx(inked[1].sum(), rel=0.2)


def test_a_large_mask_is_painted_in_parts_as_in_one(monkeypatch: pytest.MonkeyPatch) -> None:
    y, x = np.mgrid[:700, :900]
    mask = (np.sin(x / 40) + np.cos(y / 55) > 0.4) & (y > 20) & (x < 880)
    image = Image.effect_noise((900, 700), 60).convert("RGB")
    whole = paint_mask(image, mask, mask_color(0))
    for pixels_at_once in (900 * 3, 900 * 100):
        monkeypatch.setattr("flmm_core.painting.PAINTED", pixels_at_once)
        assert np.array_equal(pixels(paint_mask(image, mask, mask_color(0))), pixels(whole))


def test_heat_is_the_same_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    image = Image.radial_gradient("L").convert("RGB")
    values = np.random.default_rng(0).random((5, 7))
    whole = pixels(paint_heat(image, values))
    monkeypatch.setattr(heat, "PAINTED", 10 * image.width)
    assert np.array_equal(pixels(paint_heat(image, values)), whole)
