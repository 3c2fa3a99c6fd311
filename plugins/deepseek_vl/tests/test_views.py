from __future__ import annotations

import json
import pickle
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import InterpolationMode, pad, resize
from transformers import DeepseekVLImageProcessorPil

from flmm_core import Backbone, Segment
from flmm_deepseek_vl import SPEC, views
from flmm_deepseek_vl.backbone import DeepseekVLBackbone

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
    box = views.image_box(hw, square=384, seen=1, min_size=14)
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
    assert views.image_box((70, 70), 112, 1, 14) == (0, 0, 1, 1)


def test_pixels_beyond_the_last_whole_patch_are_not_seen() -> None:
    assert views.grid_shape(image_size=100, patch_size=16) == (6, 6)
    assert views.image_box((50, 50), 100, 0.96, 14) == (0, 0, 0.96, 0.96)


# --- option resize=original ---------------------------------------------------------------------

FIXTURES = Path(__file__).parents[3] / "tests" / "fixtures" / "reference"


def original_cases() -> list[Any]:
    """The sizes of images and of what the original's processor makes of them."""
    cases = json.loads((FIXTURES / "unpad.json").read_text())
    return [case for case in cases if case["processor"] == "deepseek_384"]


@pytest.mark.parametrize("case", original_cases(), ids=lambda case: str(case["image_wh"]))
def test_sizes_and_boxes_are_the_originals(case: Any) -> None:
    width, height = case["image_wh"]
    shape, padding = case["meta_data"]["image_shape"], case["meta_data"]["padding"]
    resized = views.resized_hw((height, width), 384, 14, cut=True)
    assert resized == (shape["height"], shape["width"])
    y0, x0, _, _ = views.image_box((height, width), 384, 1, 14, cut=True)
    assert y0 * shape["height"] == pytest.approx(-padding["before_height"])
    assert x0 * shape["width"] == pytest.approx(-padding["before_width"])


def test_333_rows_of_500_become_255_as_in_the_original() -> None:
    item = json.loads((FIXTURES / "data_transforms.json").read_text())["refcoco_concat"]
    assert item["gt_masks_shape"][1:] == [333, 500]
    assert list(views.resized_hw((333, 500), 384, 14, cut=True)) == item["masks_shape"][1:]
    assert views.resized_hw((333, 500), 384, 14) == (256, 384)
    y0, _, y1, _ = views.image_box((333, 500), 384, 1, 14, cut=True)
    assert (y0, y1) == pytest.approx((-64 / 255, (255 + 65) / 255))


@pytest.mark.parametrize("hw", SHAPES, ids=str)
def test_pixels_are_those_of_an_image_resized_by_torchvision(
    full_size: Backbone, hw: tuple[int, int]
) -> None:
    """By what DeepSeek's processor calls: torchvision's `resize` and `pad` of a PIL image."""
    cutting = DeepseekVLBackbone.load(SPEC, full_size.source, options={"resize": "original"})
    image = Image.effect_noise((hw[1], hw[0]), 80).convert("RGB")
    h, w = (max(14, int(side / max(hw) * 384)) for side in hw)
    small = resize(image, [h, w], InterpolationMode.BICUBIC, antialias=True)
    left, top = (384 - w) // 2, (384 - h) // 2
    padded = pad(small, [left, top, 384 - w - left, 384 - h - top], fill=[127] * 3)
    wanted = (torch.from_numpy(np.asarray(padded) / 255).permute(2, 0, 1) - 0.5) / 0.5
    inputs = cutting.prepare(image, [Segment("it", 0)])
    found = inputs.prefix.image["pixel_values"][0]
    assert (found - wanted).abs().max() <= 1e-6
    assert inputs.views[0].image_box == (-top / h, -left / w, (384 - top) / h, (384 - left) / w)
    # a worker of a DataLoader gets the processor by pickle
    again = pickle.loads(pickle.dumps(cutting.processor.image_processor))
    assert torch.equal(again(images=image, return_tensors="pt")["pixel_values"][0], found)


def test_by_default_sizes_are_those_of_transformers(full_size: Backbone) -> None:
    assert type(full_size.processor.image_processor) is DeepseekVLImageProcessorPil
