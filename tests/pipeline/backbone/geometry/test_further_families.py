"""Measured geometry against the declared one of families without a trained twin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from flmm_core.pipeline.backbone.geometry.measured_views import MeasuredGeometry
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment
from recipes.twins import build_twin

SIZES = [(480, 640), (60, 60), (400, 100)]
CASES = [
    ("qwen", "qwen2_vl", {}),
    ("qwen", "qwen3_vl", {}),
    ("llava_next", "llava", {}),
    # resampled cells, which several patches make, are refused
    ("llava_next", "llava_onevision", {"most_tiles": 16}),
]


@pytest.mark.parametrize(("name", "family", "geometry"), CASES, ids=str)
def test_it_equals_what_the_plugin_declares(
    name: str, family: str, geometry: dict[str, int], tmp_path: Path
) -> None:
    spec = load_backbones().get(name)
    folder = build_twin(family, tmp_path, **geometry)
    backbone: Any = load_class(spec).load(spec, str(folder))
    measurement = MeasuredGeometry(backbone.config, backbone.processor)
    for height, width in SIZES:
        inputs = backbone.prepare(Image.new("RGB", (width, height)), [Segment("a cat", 0)])
        places = backbone.vision_token_mask(inputs).nonzero().flatten()
        measured = measurement.at((height, width))
        assert measured.image_tokens == len(places)
        assert measured.separators == backbone.separator_tokens(inputs.views)
        assert measured.view_names == backbone.view_names
        for view, declared in zip(measured.views, inputs.views, strict=True):
            assert torch.equal(places[view.token_index], declared.token_index)
            h, w = declared.token_index.shape
            y0, x0, y1, x1 = declared.image_box
            off = torch.tensor(view.image_box) - torch.tensor(declared.image_box)
            assert (off / torch.tensor([(y1 - y0) / h, (x1 - x0) / w] * 2)).abs().max() < 0.05
