"""Measured geometry against the views that the built-in plugins declare."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from flmm_core.pipeline.backbone.geometry.grids import assemble
from flmm_core.pipeline.backbone.geometry.measured_views import GeometryRefused, MeasuredGeometry
from flmm_core.pipeline.backbone.geometry.places import DITHERED, Places
from flmm_core.pipeline.types import ImageView
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment
from recipes.families import FAMILIES

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


@pytest.mark.parametrize(("family", "unit"), [("qwen2_vl", 28), ("qwen3_vl", 32)])
def test_cells_narrower_than_two_levels_of_a_ramp(family: str, unit: int) -> None:
    """Ramps have 256 levels, and 134 cells or more lie beside each other."""
    config, processor = FAMILIES[family]()
    limits = {"shortest_edge": 56 * 56, "longest_edge": 16384 * unit**2}
    processor.image_processor.size = limits
    h, w = (side // unit for side in smart_resize(300, 4300, unit, *limits.values()))
    assert w > 130
    measured = MeasuredGeometry(config, processor).at((300, 4300))
    (view,) = measured.views
    assert torch.equal(view.token_index, torch.arange(h * w).view(h, w))
    assert box_error(view, ImageView("image", view.token_index, (0.0, 0.0, 1.0, 1.0))) < 0.05


@pytest.mark.parametrize("excess", [0.0, DITHERED])
def test_tokens_that_overlap_or_leave_gaps_make_no_grid(excess: float) -> None:
    def found(cells: int, width: float) -> int:
        """How many cells of 1 / `cells` are seen, of tokens so wide (in cells) and so blurred."""
        line = (torch.arange(cells, dtype=torch.float64) + 0.5) / cells
        size = torch.full((cells, 2), width / cells, dtype=torch.float64)
        size = (size**2 + excess).sqrt()
        places = Places(
            torch.stack([torch.full_like(line, 0.5), line], dim=1),
            size,
            torch.full((cells,), excess, dtype=torch.float64),
            torch.zeros(cells, dtype=torch.int64),
        )
        (grid,) = assemble(places, torch.arange(cells))
        return grid.tokens.numel()

    for cells in (5, 40, 250):
        assert found(cells, 1.0) == cells
        assert found(cells, 1.05) == cells
    for cells, width in ((5, 0.8), (5, 1.2), (40, 1.2), (250, 1.2)):
        with pytest.raises(GeometryRefused, match="no regular grids"):
            found(cells, width)


def box_error(one: Any, other: Any) -> float:
    """The largest distance of two boxes' sides, in cells."""
    h, w = other.token_index.shape
    y0, x0, y1, x1 = other.image_box
    cell = torch.tensor([(y1 - y0) / h, (x1 - x0) / w] * 2)
    return float(((torch.tensor(one.image_box) - torch.tensor(other.image_box)) / cell).abs().max())
