from __future__ import annotations

import random

import pytest
import torch
from PIL import Image
from transformers.image_processing_utils import select_best_resolution
from transformers.models.llava_next.modeling_llava_next import unpad_image

from flmm_core import Backbone
from flmm_llava_next import views

TILE = views.Tile(336, 14)
CANVASES = [(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]
SHAPES = [
    (480, 640),
    (640, 480),
    (300, 1200),
    (1080, 1920),
    (200, 1000),
    (1000, 200),
    (333, 517),
    (671, 673),
    (1, 1),
    (1, 70),
    (70, 1),
    (3, 3),
    (3000, 4000),
]


@pytest.mark.parametrize(
    ("hw", "tokens", "fine"),
    [  # counted once with the real model's processor
        ((480, 640), 2340, (36, 48)),
        ((640, 480), 2352, (48, 36)),
        ((300, 1200), 1890, (18, 72)),
        ((1080, 1920), 1948, (28, 48)),
    ],
    ids=str,
)
def test_known_shapes(hw: tuple[int, int], tokens: int, fine: tuple[int, int]) -> None:
    canvas = views.best_canvas(hw, CANVASES)
    assert views.fine_shape(hw, canvas, TILE) == fine
    assert views.token_count(24, fine) == tokens


@pytest.mark.parametrize("hw", SHAPES, ids=str)
def test_count_is_that_of_the_processor(full_size: Backbone, hw: tuple[int, int]) -> None:
    processor = full_size.processor
    white = Image.new("RGB", (hw[1], hw[0]), "white")
    encoded = processor(text=processor.image_token, images=white, return_tensors="pt")
    tokens = int((encoded["input_ids"] == full_size.image_token_id).sum())
    canvas = views.best_canvas(hw, CANVASES)
    assert views.token_count(24, views.fine_shape(hw, canvas, TILE)) == tokens


def test_shape_is_that_of_the_model_for_any_image() -> None:
    """The model's own functions choose the canvas and drop the padding."""
    chance = random.Random(0)
    for largest in (8, 60, 700, 5000):
        for _ in range(1500):
            hw = chance.randint(1, largest), chance.randint(1, largest)
            canvas = views.best_canvas(hw, CANVASES)
            assert canvas == select_best_resolution(hw, CANVASES), hw
            cells = torch.empty(1, canvas[0] // 14, canvas[1] // 14)
            left = tuple(unpad_image(cells, hw).shape[1:])
            assert views.fine_shape(hw, canvas, TILE) == left, hw


@pytest.mark.parametrize("hw", [s for s in SHAPES if s != (1, 1)], ids=str)
def test_fine_box_is_where_the_processor_puts_the_image(
    full_size: Backbone, hw: tuple[int, int]
) -> None:
    white = Image.new("RGB", (hw[1], hw[0]), "white")
    image = full_size.processor.image_processor(images=white, return_tensors="pt")
    high, wide = (side // 336 for side in views.best_canvas(hw, CANVASES))
    tiles = image["pixel_values"][0, 1:, 0].unflatten(0, (high, wide))
    canvas = tiles.transpose(1, 2).flatten(2).flatten(0, 1)  # (H, W); the padding is black
    rows = (canvas > 1.9).any(1).nonzero().flatten()
    columns = (canvas > 1.9).any(0).nonzero().flatten()
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    cells = canvas.shape[0] // 14, canvas.shape[1] // 14
    fine = views.fine_shape(hw, tuple(canvas.shape), TILE)
    y0, x0 = ((whole - kept) // 2 * 14 for whole, kept in zip(cells, fine, strict=True))
    y1, x1 = y0 + fine[0] * 14, x0 + fine[1] * 14
    height, width = bottom - top, right - left
    assert views.fine_box(hw, tuple(canvas.shape), TILE) == pytest.approx(
        ((y0 - top) / height, (x0 - left) / width, (y1 - top) / height, (x1 - left) / width)
    )


def test_newlines_belong_to_no_cell() -> None:
    assert views.square_rows(2) == [[0, 1], [2, 3]]
    assert views.fine_rows((2, 3), first=4) == [[4, 5, 6], [8, 9, 10]]  # 7 and 11 end the rows
    assert views.token_count(2, (2, 3)) == 12
