"""Repainted spots tell where cells are, also in trained models, whose tokens answer unequally."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flmm_core.plugins import load_backbones, load_class
from flmm_core.testing import load_for_checks, probes
from flmm_core.testing.probes import picture, repainted_cells


@pytest.mark.parametrize("name", ["qwen", "llava_next"])
def test_tokens_that_answer_unequally_to_any_change_are_told_from_misplaced_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = load_backbones().get(name)
    backbone = load_for_checks(spec)
    real = probes._embedded_cells

    def unequal(*given: Any) -> torch.Tensor:
        """Columns to the left answer up to 1,000 times as much as those to the right."""
        cells = real(*given)
        return cells * torch.logspace(3, 0, cells.shape[1])[:, None]

    monkeypatch.setattr(probes, "_embedded_cells", unequal)
    image, last = picture(240, 360), len(backbone.view_names) - 1
    pairs = repainted_cells(backbone, image, last)
    assert sum(spot != changed for spot, changed in pairs) <= 1

    right = load_class(spec).views

    def half_a_cell_too_low(self: Any, *given: Any) -> tuple[Any, ...]:
        views = []
        for view in right(self, *given):
            (y0, x0, y1, x1), rows = view.image_box, view.token_index.shape[0]
            down = (y1 - y0) / rows / 2
            views.append(replace(view, image_box=(y0 + down, x0, y1 + down, x1)))
        return tuple(views)

    monkeypatch.setattr(type(backbone), "views", half_a_cell_too_low)
    pairs = repainted_cells(backbone, image, last)
    assert sum(spot != changed for spot, changed in pairs) > len(pairs) // 4
