"""The kind of the 7B models, with a second vision encoder."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import DeepseekVLHybridImageProcessorPil

from flmm_core import Backbone, WeightsError
from flmm_core.testing import load_for_checks
from flmm_core.testing.probes import CAPTION, picture
from flmm_deepseek_vl import SPEC, views
from flmm_deepseek_vl.backbone import DeepseekVLBackbone

PUBLISHED = DeepseekVLHybridImageProcessorPil(image_mean=[0.5] * 3, image_std=[0.5] * 3)
SHAPES = [(480, 640), (640, 480), (200, 1000), (333, 517), (500, 500), (1, 150), (3000, 4000)]


@pytest.fixture(scope="module")
def backbone(hybrid: Path) -> Backbone:
    return load_for_checks(SPEC, hybrid)


@pytest.mark.parametrize("hw", SHAPES, ids=str)
def test_the_box_is_where_both_encoders_see_the_image(hw: tuple[int, int]) -> None:
    white = Image.new("RGB", (hw[1], hw[0]), "white")
    given = PUBLISHED(images=white, return_tensors="pt")
    y0, x0, y1, x1 = views.image_box(hw, square=1024, seen=1, min_size=14)
    for name, side in (("high_res_pixel_values", 1024), ("pixel_values", 384)):
        pixels = given[name][0, 0]
        bright = pixels > (pixels.min() + pixels.max()) / 2 if min(hw) != max(hw) else pixels > 0
        for axis, begin, end in ((0, y0, y1), (1, x0, x1)):
            seen = bright.any(1 - axis).nonzero().flatten()
            first, last = -begin / (end - begin) * side, (1 - begin) / (end - begin) * side
            assert int(seen[0]) == pytest.approx(first, abs=0.51)
            assert int(seen[-1]) + 1 == pytest.approx(last, abs=0.51)


def test_both_encoders_count(backbone: Backbone) -> None:
    batch = backbone.collate([backbone.prepare(picture(96, 144), CAPTION)])
    (before,) = backbone.trace(batch)
    for name in ("pixel_values", "high_res_pixel_values"):
        changed = {**batch.tensors, name: batch.tensors[name].flip(3)}
        (after,) = backbone.trace(type(batch)(changed, batch.samples, batch.offsets))
        assert (after.attention - before.attention).abs().max() > 1e-5, name


def test_resized_as_the_original_does(hybrid: Path) -> None:
    cutting = DeepseekVLBackbone.load(SPEC, str(hybrid), options={"resize": "original"})
    rounding = DeepseekVLBackbone.load(SPEC, str(hybrid))
    image = picture(333, 500)
    cut, rounded = (each.prepare(image, CAPTION) for each in (cutting, rounding))
    assert cut.views[0].image_box[0] == pytest.approx(-37 / 149)  # 149.18 of 224 pixels
    assert rounded.views[0].image_box == cut.views[0].image_box
    cut, rounded = (each.prepare(picture(331, 495), CAPTION) for each in (cutting, rounding))
    assert cut.views[0].image_box[0] == pytest.approx(-37 / 149)  # 149.79
    assert rounded.views[0].image_box[0] == pytest.approx(-37 / 150)
    pixels = cut.prefix.image["high_res_pixel_values"][0]
    padding = pixels[:, :1, :1]
    rows = (pixels != padding).any(0).any(1).nonzero().flatten()
    assert len(rows) == 149


def test_a_processor_for_one_encoder_is_refused(hybrid: Path, twin: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(hybrid, tmp_path / "hybrid")
    shutil.copy(twin / "processor_config.json", folder)
    with pytest.raises(WeightsError, match="two vision encoders"):
        load_for_checks(SPEC, folder)


def test_the_grid_has_the_tokens_of_the_processor(backbone: Backbone) -> None:
    inputs = backbone.prepare(picture(60, 300), CAPTION)
    places = backbone.vision_token_mask(inputs).nonzero().flatten()
    assert torch.equal(inputs.views[0].token_index.flatten(), places)
    assert inputs.views[0].token_index.shape == (14, 14)
