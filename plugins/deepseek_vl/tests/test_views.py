from __future__ import annotations

from itertools import chain

import pytest
from PIL import Image

from flmm_core import Backbone
from flmm_deepseek_vl import views

SHAPES = [
    (480, 640),
    (640, 480),
    (200, 1000),
    (1000, 200),
    (333, 517),
    (383, 384),
    (500, 500),
    (1, 1),
    (1, 150),  # would be 3 pixels high, is 14
    (3, 300),
    (300, 3),
    (3000, 4000),
]


@pytest.mark.parametrize("hw", SHAPES, ids=str)
def test_box_is_where_the_processor_puts_the_image(
    full_size: Backbone, hw: tuple[int, int]
) -> None:
    white = Image.new("RGB", (hw[1], hw[0]), "white")
    image = full_size.processor.image_processor(images=white, return_tensors="pt")
    shown = image["pixel_values"][0, 0] > 0.9  # (384, 384); the padding is grey
    rows, columns = shown.any(1).nonzero().flatten(), shown.any(0).nonzero().flatten()
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    box = views.image_box(hw, image_size=384, patch_size=16, min_size=14)
    height, width = bottom - top, right - left
    assert box == pytest.approx(
        (-top / height, -left / width, (384 - top) / height, (384 - left) / width)
    )


@pytest.mark.parametrize("hw", SHAPES, ids=str)
def test_grid_has_the_tokens_that_the_processor_writes(
    full_size: Backbone, hw: tuple[int, int]
) -> None:
    processor = full_size.processor
    white = Image.new("RGB", (hw[1], hw[0]), "white")
    encoded = processor(text=processor.image_token, images=white, return_tensors="pt")
    tokens = int((encoded["input_ids"] == full_size.image_token_id).sum())
    rows = views.token_rows(views.grid_shape(image_size=384, patch_size=16))
    assert list(chain.from_iterable(rows)) == list(range(tokens))
    assert len(rows) == 24


def test_a_square_image_is_covered_exactly() -> None:
    assert views.image_box((70, 70), 112, 8, 14) == (0, 0, 1, 1)


def test_pixels_beyond_the_last_whole_patch_are_not_seen() -> None:
    assert views.grid_shape(image_size=100, patch_size=16) == (6, 6)
    assert views.image_box((50, 50), 100, 16, 14) == (0, 0, 0.96, 0.96)
