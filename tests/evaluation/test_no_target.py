"""A phrase that names nothing in the image: its truth is a mask without a pixel."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from flmm_core.data import rle
from flmm_core.data.sample import Phrase, Sample
from flmm_core.evaluation.rows_from_masks import rows_from_masks
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.loader.dataset import ExampleBatch
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Grounding
from flmm_core.segment import Segment
from flmm_core.training.losses import grounding_loss

NOTHING = torch.zeros(1, 8, 8, dtype=torch.bool)


def grounding(logits: Tensor) -> Grounding:
    maps = AttentionMaps(torch.zeros(len(logits), 1, 2, 2), WHOLE_IMAGE)
    return Grounding(logits[:, ::2, ::2], MaskLogits(logits), maps)


@pytest.mark.parametrize("nearest", [True, False])
def test_the_loss_is_least_when_nothing_is_predicted(nearest: bool) -> None:
    logits = torch.zeros(1, 8, 8, requires_grad=True)
    loss = grounding_loss([grounding(logits)], [NOTHING], nearest=nearest).total
    loss.backward()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()
    assert (logits.grad >= 0).all()
    assert logits.grad.sum() > 0
    right = grounding_loss([grounding(torch.full((1, 8, 8), -30.0))], [NOTHING]).total
    assert 0 <= right < 1e-6 < loss


@pytest.mark.parametrize("level", [-5.0, 5.0])
def test_it_is_counted_like_any_other_mask(level: float) -> None:
    mask = rle.empty(8, 8)
    sample = Sample(
        "x", Path("x.png"), (8, 8), (Segment("the ring", 0),), (Phrase("the ring", mask),)
    )
    truth = torch.from_numpy(rle.decode(mask))[None]
    batch = SimpleNamespace(truths=(truth,), samples=(sample,))
    result = Evaluation()
    result.add(
        *rows_from_masks([grounding(torch.full((1, 8, 8), level))], cast(ExampleBatch, batch))
    )
    scores: dict[str, Any] = result.to_dict()
    assert (scores["refined"]["masks"], scores["refined"]["intersection"]) == (1, 0)
    assert scores["refined"]["union"] == (64 if level > 0 else 0)
    assert scores["generalised"]["n_acc"] == (0 if level > 0 else 1)
    assert scores["box"]["masks"] == scores["point"]["masks"] == 0
