"""A processor that rounds to bfloat16 bends the ramps; its geometry is proved all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers.models.llama4.image_processing_llama4 import (
    find_supported_resolutions,
    get_best_fit,
)

from flmm_core.pipeline.backbone.geometry.levels import Levels, is_rounded
from flmm_core.pipeline.backbone.geometry.measured_views import MeasuredGeometry
from recipes.families import FAMILIES


def normalized(grays: torch.Tensor) -> torch.Tensor:
    """As a processor in bfloat16 does it, -1 to 1."""
    return (grays.bfloat16() * (1 / 255) - 0.5) / 0.5


def test_rounded_grays_are_looked_up() -> None:
    levels = Levels(lambda gray: [normalized(torch.tensor(np.array(gray)))])
    true = torch.arange(256) / 255
    rounded = normalized(torch.arange(256)).float() / 2 + 0.5
    assert (rounded - true).abs().max() > 1.9e-3
    assert (levels.undo(rounded) - true).abs().max() < 1e-6


def test_a_full_ramp_is_not_taken_for_a_rounded_one() -> None:
    ramp = torch.linspace(-1, 1, 1000)
    assert is_rounded(ramp.bfloat16().float())
    assert not is_rounded(ramp)
    assert not is_rounded(ramp.half())


def test_llama4_lies_on_the_canvas_that_its_processor_fits() -> None:
    image_hw = 600, 800
    config, processor = FAMILIES["llama4"]()
    tile = processor.image_processor.size
    canvases = torch.tensor(find_supported_resolutions(16, tile))
    # images of more than a tile are not enlarged, only padded to the right and below
    canvas_hw = [int(side) for side in get_best_fit(image_hw, canvases)]
    coarse, fine = MeasuredGeometry(config, processor).at(image_hw).views
    assert coarse.image_box == pytest.approx((0, 0, 1, 1), abs=1e-3)
    down, right = (canvas / side for canvas, side in zip(canvas_hw, image_hw, strict=True))
    assert fine.image_box == pytest.approx((0, 0, down, right), abs=1e-3)
    tiles = [side // tile.height for side in canvas_hw]
    assert tuple(fine.token_index.shape) == (12 * tiles[0], 12 * tiles[1])
