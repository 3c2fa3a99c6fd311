from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_core.painting import mask_color
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps
from flmm_core.training.contact_sheet import SIDE, attention_image, draw_sheet, iou


def maps_with_a_spot(row: int, column: int, box: tuple[float, ...] = WHOLE_IMAGE) -> AttentionMaps:
    """One phrase, five channels: four even ones and one with all its mass in one cell."""
    maps = torch.full((1, 5, 8, 8), 1 / 64)
    maps[0, 2] = 0
    maps[0, 2, row, column] = 1
    return AttentionMaps(maps, box)  # type: ignore[arg-type]


def test_the_attention_image_is_the_weighted_mix_of_the_channels() -> None:
    maps = maps_with_a_spot(1, 6)
    shown = attention_image(maps, 0)
    assert divmod(int(shown.argmax()), 8) == (1, 6)
    assert (float(shown.min()), float(shown.max())) == (0, 1)
    without = attention_image(maps, 0, torch.tensor([1.0, 1, 0, 1, 1]))
    assert not without.any()


def test_the_attention_image_leaves_padding_out() -> None:
    # The grid's upper half shows padding: its cell (6, 2) lies in the middle of the image.
    shown = attention_image(maps_with_a_spot(6, 2, (-1.0, 0.0, 1.0, 1.0)), 0)
    row, _ = divmod(int(shown.argmax()), 8)
    assert row in (3, 4, 5)


def test_a_channel_that_the_mask_head_does_not_read_has_no_weight() -> None:
    torch.manual_seed(0)
    head = MaskHead(5, base_channels=4, enlarge_to=8)
    with torch.no_grad():
        next(head.unet.parameters())[:, 3] = 0
        weights = head.channel_weights(AttentionMaps(torch.rand(2, 5, 8, 8), WHOLE_IMAGE))
    assert weights.shape == (2, 5)
    assert torch.allclose(weights.sum(1), torch.ones(2))
    assert (weights >= 0).all()
    assert (weights[:, 3] < 1e-6).all()
    assert all(parameter.grad is None for parameter in head.parameters())


def test_a_sheet_has_a_row_per_phrase_and_a_column_per_stage() -> None:
    image = Image.new("RGB", (60, 40), (10, 10, 10))
    maps = AttentionMaps(torch.rand(2, 5, 8, 8), WHOLE_IMAGE)
    coarse, logits = torch.full((2, 8, 8), -5.0), torch.full((2, 40, 60), -5.0)
    logits[1, :, 30:] = 5
    truth = logits > 0
    with_truth = draw_sheet(image, ["a", "bé 漢"], maps, coarse, logits, truth)
    without = draw_sheet(image, ["a", "b"], maps, coarse, logits)
    assert SIDE < with_truth.width - without.width < SIDE + 20
    assert with_truth.width == pytest.approx(5 * SIDE, rel=0.1)
    # Refined mask and truth of the second phrase: the right half, in one color.
    painted = (np.abs(np.asarray(with_truth).astype(int) - mask_color(1)).sum(axis=2) < 200).any(0)
    step = with_truth.width - without.width
    columns = [painted[k * step : (k + 1) * step].any() for k in range(5)]
    assert columns == [False, False, False, True, True]


def test_an_iou_is_taken_at_the_size_of_the_truth() -> None:
    truth = torch.zeros(8, 12, dtype=torch.bool)
    truth[:, :6] = True
    left = torch.tensor([[True, False]])
    assert iou(left, truth) == 1
    assert iou(~left, truth) == 0
    assert iou(torch.ones(2, 2, dtype=torch.bool), truth) == pytest.approx(0.5)
    assert iou(truth & False, truth & False) == 0
