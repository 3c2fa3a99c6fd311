"""LLaVA-1.5 and LLaVA-OneVision: what differs from LLaVA-Next."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlavaOnevisionImageProcessorPil
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_onevision.modeling_llava_onevision import LlavaOnevisionModel

from flmm_core import Backbone, UsageError, WeightsError
from flmm_core.plugins import load_class
from flmm_core.testing import load_for_checks
from flmm_core.testing.probes import CAPTION, picture
from flmm_llava_next import SPEC, views
from recipes.families import FAMILIES
from recipes.twins import build_twin

PUBLISHED = LlavaOnevisionImageProcessorPil.image_grid_pinpoints
SIZES = [(480, 640), (1080, 1920), (200, 1000), (1000, 200), (333, 517), (60, 60), (2500, 1700)]


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_twin("llava", tmp_path_factory.mktemp("llava"))


# --- LLaVA-1.5 ----------------------------------------------------------------------------------


@pytest.mark.parametrize("square", ["crop", "pad"])
@pytest.mark.parametrize("hw", [(480, 640), (333, 112), (100, 501), (77, 77)], ids=str)
def test_the_box_is_where_the_square_lies(llava: Path, square: str, hw: tuple[int, int]) -> None:
    """A ramp through the processor says of each pixel of the square where it lies."""
    backbone = load_class(SPEC).load(SPEC, str(llava), options={"square": square})
    y0, x0, y1, x1 = backbone.prepare(picture(*hw), CAPTION).views[0].image_box
    ends = zip((0, 1), hw, ((y0, y1), (x0, x1)), strict=True)
    for axis, length, (begin, end) in ends:
        ramp = np.linspace(0, 255, length)
        pixels = ramp[:, None] if axis == 0 else ramp[None]
        gray = np.broadcast_to(pixels.round(), hw).astype(np.uint8)
        image = Image.fromarray(np.stack([gray] * 3, 2))
        settings = backbone.processor.image_processor
        given = settings(images=image, return_tensors="pt")["pixel_values"][0, 0]
        values = (given * settings.image_std[0] + settings.image_mean[0]).select(1 - axis, 56)
        at = begin + (torch.arange(112) + 0.5) / 112 * (end - begin)
        inside = (at > 0.1) & (at < 0.9)
        assert inside.sum() > 15
        assert (values - at)[inside].abs().max() < 0.012  # 1.4 pixels of 112


def test_only_padding_shows_the_whole_image(llava: Path) -> None:
    hw = (100, 300)
    cropped, padded = (
        load_class(SPEC).load(SPEC, str(llava), options={"square": square})
        for square in ("crop", "pad")
    )
    for backbone, whole in ((cropped, False), (padded, True)):
        y0, x0, y1, x1 = backbone.prepare(picture(*hw), CAPTION).views[0].image_box
        assert (min(y0, x0) <= 0 and max(y1, x1) >= 1 and x0 <= 0 <= 1 <= x1) is whole


def test_a_way_that_there_is_not_is_refused(llava: Path) -> None:
    with pytest.raises(UsageError, match="square"):
        load_class(SPEC).load(SPEC, str(llava), options={"square": "stretch"})


def test_an_encoder_without_fixed_tiles_is_refused(llava: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llava, tmp_path / "llava")
    config = json.loads((folder / "processor_config.json").read_text())
    config["image_processor"]["crop_size"] = {"height": 64, "width": 64}
    (folder / "processor_config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"tiles of 112 pixels; the processor has tiles of 64\."):
        load_for_checks(SPEC, folder)


# --- LLaVA-OneVision ----------------------------------------------------------------------------


def test_the_count_is_that_of_the_published_processor() -> None:
    processor = FAMILIES["llava_onevision"]().processor
    chance = random.Random(0)
    sizes = [(chance.randint(30, 3000), chance.randint(30, 3000)) for _ in range(300)]
    counts = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]
    tile, resampled = views.Tile(384, 14), 0
    for hw, count in zip(sizes, counts, strict=True):
        canvas = views.best_canvas(hw, PUBLISHED)
        assert canvas == select_best_resolution(hw, PUBLISHED)
        fine = views.fine_shape(hw, canvas, tile, most_tiles=9)
        resampled += fine != views.fine_shape(hw, canvas, tile)
        assert views.token_count(tile.side, fine) == count, hw
    assert 50 < resampled < 250


@pytest.mark.parametrize(
    ("pixels", "patch", "off"), [(384, 16, 0.1), (384, 14, 0.25)], ids=["even", "published"]
)
@pytest.mark.parametrize("hw", SIZES, ids=str)
def test_tokens_lie_where_the_model_takes_them_from(
    hw: tuple[int, int], pixels: int, patch: int, off: float
) -> None:
    """The model's own packing of features that say where each patch lies."""
    tile = views.Tile(pixels, patch)
    canvas = views.best_canvas(hw, PUBLISHED)
    shape = views.fine_shape(hw, canvas, tile, most_tiles=9)
    coarse = torch.full((1, tile.side**2, 2), torch.nan)
    packed = packed_features(torch.cat([coarse, patch_centers(hw, canvas, tile)]), hw, tile)
    assert len(packed) == views.token_count(tile.side, shape)
    found = packed[torch.tensor(views.fine_rows(shape, first=tile.side**2))]  # (h, w, 2)
    box = torch.tensor(views.fine_box(hw, canvas, tile))
    size = (box[2:] - box[:2]) / torch.tensor(shape)
    cells = torch.stack(torch.meshgrid(*map(torch.arange, shape), indexing="ij"), -1)
    declared = box[:2] + (cells + 0.5) * size
    assert ((found - declared) / size).abs().max() < off


def packed_features(features: torch.Tensor, hw: tuple[int, int], tile: views.Tile) -> torch.Tensor:
    vision = SimpleNamespace(image_size=tile.pixels, patch_size=tile.patch)
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=PUBLISHED)
    model, newline = SimpleNamespace(config=config), torch.full((2,), torch.nan)
    ((packed,), _) = LlavaOnevisionModel.pack_image_features(model, [features], [hw], newline)
    return packed


def patch_centers(hw: tuple[int, int], canvas: tuple[int, int], tile: views.Tile) -> torch.Tensor:
    """(tiles, n, 2): y and x of each patch in fractions of the image."""
    blank = np.zeros((3, *hw), np.uint8)
    resized = get_patch_output_size(blank, canvas, ChannelDimension.FIRST)
    margins = LlavaOnevisionImageProcessorPil()._get_padding_size(resized, canvas)
    steps = torch.arange(tile.side) * tile.patch + tile.patch / 2
    tiles = [
        torch.stack(torch.meshgrid(steps + top, steps + left, indexing="ij"), -1).flatten(0, 1)
        for top in range(0, canvas[0], tile.pixels)
        for left in range(0, canvas[1], tile.pixels)
    ]
    before = torch.tensor([margins[0][0], margins[1][0]])
    return (torch.stack(tiles) - before) / torch.tensor(resized)


def test_two_images_of_a_conversation_keep_their_tiles(tmp_path: Path) -> None:
    backbone: Backbone = load_for_checks(SPEC, build_twin("llava_onevision", tmp_path, tile=32))
    first, second = picture(60, 90), picture(90, 60)
    alone = [backbone.prepare(image, CAPTION).views for image in (first, second)]
    said = [{"type": "image", "image": first}, {"type": "image", "image": second}]
    turn = {"role": "user", "content": [*said, {"type": "text", "text": "What?"}]}
    reply = backbone.reply(None, [turn], max_new_tokens=2)
    for seen, expected in zip(reply.images, alone, strict=True):
        for view, other in zip(seen.views, expected, strict=True):
            assert view.token_index.shape == other.token_index.shape
            assert view.image_box == other.image_box


def test_other_numbers_of_tiles_are_refused(tmp_path: Path) -> None:
    folder = build_twin("llava_onevision", tmp_path, tile=32)
    config = json.loads((folder / "config.json").read_text())
    config["vision_aspect_ratio"] = "anyres_max_9"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match=r"at most 9 tiles.*at most 4 tiles"):
        load_for_checks(SPEC, folder)
