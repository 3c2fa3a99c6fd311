"""Measured geometry against the views that the built-in plugins declare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from flmm_core.pipeline.backbone.geometry.measured_views import MeasuredGeometry
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment

SIZES = [(480, 640), (60, 60), (500, 100), (333, 500)]


@pytest.fixture(scope="module", params=("qwen", "deepseek_vl", "llava_next"))
def backbone(request: pytest.FixtureRequest) -> Any:
    spec = load_backbones().get(request.param)
    return load_class(spec).load(spec)


def test_it_equals_what_the_plugin_declares(backbone: Any) -> None:
    geometry = MeasuredGeometry(backbone.config, backbone.processor)
    for height, width in SIZES:
        inputs = backbone.prepare(Image.new("RGB", (width, height)), [Segment("a cat", 0)])
        ids = inputs.tokens["input_ids"]
        places = (ids == backbone.image_token_id).nonzero().flatten()
        measured = geometry.at((height, width))
        assert measured.image_tokens == len(places)
        assert measured.separators == backbone.separator_tokens(inputs.views)
        assert measured.view_names == backbone.view_names
        for view, declared in zip(measured.views, inputs.views, strict=True):
            assert torch.equal(places[view.token_index], declared.token_index)
            assert box_error(view, declared) < 0.05


def box_error(one: Any, other: Any) -> float:
    """The largest distance of two boxes' sides, in cells."""
    h, w = other.token_index.shape
    y0, x0, y1, x1 = other.image_box
    cell = torch.tensor([(y1 - y0) / h, (x1 - x0) / w] * 2)
    return float(((torch.tensor(one.image_box) - torch.tensor(other.image_box)) / cell).abs().max())
