"""Repainting parts of an image tells where a model's tokens are, and raises no false alarm."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flmm_core.pipeline.backbone import load_check
from flmm_core.pipeline.backbone.load_check import misplaced_views
from flmm_core.pipeline.backbone.probe import CAPTION, decoder_inputs, probe_image
from flmm_core.plugins import load_backbones, load_class


@pytest.fixture(scope="module", params=("qwen", "deepseek_vl", "llava_next"))
def probed(request: pytest.FixtureRequest) -> tuple[Any, Any, torch.Tensor]:
    """(backbone, inputs, what the language model received)."""
    spec = load_backbones().get(request.param)
    backbone = load_class(spec).load(spec)
    inputs = backbone.prepare(probe_image(), CAPTION)
    embedded = decoder_inputs(backbone, backbone.collate([inputs]))["inputs_embeds"][0]
    return backbone, inputs, embedded


@pytest.mark.parametrize("unequal", [False, True], ids=["as they are", "unequal"])
def test_tokens_that_answer_unequally_to_any_change_are_not_misplaced(
    unequal: bool, probed: tuple[Any, Any, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, inputs, embedded = probed
    if unequal:
        # columns to the left answer up to 30 times as much as those to the right
        real = load_check._changes

        def changes(*given: Any, **more: Any) -> list[torch.Tensor]:
            return [one * torch.logspace(1.5, 0, one.shape[1]) for one in real(*given, **more)]

        monkeypatch.setattr(load_check, "_changes", changes)
    assert misplaced_views(backbone, probe_image(), inputs, embedded) == []


@pytest.mark.parametrize("shift", [(0, 1), (0, -1), (1, 0), (-1, 0)], ids=str)
def test_a_grid_one_cell_aside_is_seen(
    shift: tuple[int, int], probed: tuple[Any, Any, torch.Tensor]
) -> None:
    backbone, inputs, embedded = probed
    aside = [replace(v, token_index=v.token_index.roll(shift, (0, 1))) for v in inputs.views]
    faults = misplaced_views(backbone, probe_image(), replace(inputs, views=aside), embedded)
    assert len(faults) == len(aside)
