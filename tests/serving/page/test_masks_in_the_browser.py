"""The page decodes and paints masks as pycocotools and `flmm_core.painting` do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.painting import mask_color, paint_mask
from flmm_core.pipeline.heat import HEAT, paint_heat
from tests.browser import Page

DECODE = """(async codes => {
  const {stencil} = await import("/static/masks.js");
  return codes.map(code => [...stencil(code, code.size[1], code.size[0])].join(""));
})"""
PAINT = """(async (code, width, height, color) => {
  const {stencil, layers} = await import("/static/masks.js");
  const canvas = document.createElement("canvas");
  Object.assign(canvas, {width, height});
  const context = canvas.getContext("2d");
  context.fillStyle = "rgb(90 120 60)";
  context.fillRect(0, 0, width, height);
  const made = layers(stencil(code, width, height), width, height, color);
  context.globalAlpha = 0.45;
  context.drawImage(made.fill, made.left, made.top);
  context.globalAlpha = 1;
  context.drawImage(made.outline, made.left, made.top);
  return [...context.getImageData(0, 0, width, height).data];
})"""
HEATED = """(async (values, cells, width, height, stops) => {
  const {paintHeat} = await import("/static/masks.js");
  const pixels = new ImageData(width, height);
  pixels.data.fill(100);
  const grid = {height: cells[0], width: cells[1], values: Float32Array.from(values)};
  return [...paintHeat(pixels, grid, stops).data];
})"""


def coded(mask: NDArray[np.bool_]) -> dict[str, object]:
    code = rle.encode(mask)
    return {"size": code["size"], "counts": code["counts"].decode("ascii")}


def call(page: Page, function: str, *arguments: object) -> object:
    return page.run(f"{function}({', '.join(map(json.dumps, arguments))})")


@pytest.fixture(scope="module", autouse=True)
def _at_the_page(page: Page, address: str) -> None:
    page.open(f"{address}/page/state")
    page.until("location.pathname === '/page/state' && document.readyState === 'complete'")


def blob(height: int, width: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[:height, :width]
    inside = np.hypot((rows - 0.5 * height) / height, (columns - 0.4 * width) / width) < 0.3
    return inside & ~((rows > 0.45 * height) & (rows < 0.5 * height))


@pytest.mark.browser
def test_run_lengths_are_decoded_as_by_pycocotools(page: Page) -> None:
    rng = np.random.default_rng(0)
    masks = [
        *(rng.random((rng.integers(1, 40), rng.integers(1, 40))) < share for share in (0.02, 0.5)),
        np.zeros((7, 5), bool),
        np.ones((7, 5), bool),
        blob(300, 217),
        np.arange(70_000).reshape(280, 250) == 69_999,  # counts of several letters
    ]
    decoded = call(page, DECODE, [coded(mask) for mask in masks])
    assert decoded == ["".join(map(str, mask.astype(int).ravel())) for mask in masks]


@pytest.mark.browser
@pytest.mark.parametrize(("size", "shown"), [((45, 60), (180, 240)), ((1800, 2400), (180, 240))])
def test_masks_are_painted_as_in_overlays(
    page: Page, size: tuple[int, int], shown: tuple[int, int]
) -> None:
    mask, (height, width) = blob(*size), shown
    found = np.array(call(page, PAINT, coded(mask), width, height, mask_color(0)))
    found = found.reshape(height, width, 4)[..., :3]
    ground = Image.new("RGB", (width, height), (90, 120, 60))
    expected = np.asarray(paint_mask(ground, mask, mask_color(0))).astype(int)
    off = np.abs(found - expected).max(axis=2)
    assert np.ptp(expected.reshape(-1, 3), axis=0).min() > 50
    # Rounding at the edges of bands; a mask shifted by a pixel is off at 1.7 % of the pixels.
    assert (off > 8).mean() < 0.004


@pytest.mark.browser
def test_heat_is_painted_as_in_contact_sheets(page: Page) -> None:
    values = np.random.default_rng(1).random((6, 8)).astype(np.float32)
    found = call(page, HEATED, values.ravel().tolist(), values.shape, 160, 120, HEAT.tolist())
    expected = np.asarray(paint_heat(Image.new("RGB", (160, 120), (100, 100, 100)), values))
    off = np.abs(np.array(found).reshape(120, 160, 4)[..., :3] - expected.astype(int))
    assert off.max() <= 2
