"""What `Grounder.ground` gives."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from flmm_core.errors import UsageError
from flmm_core.painting import mask_color
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.result import Result, collect
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Grounding


def result_of(
    logits: Tensor,
    phrases: list[str],
    image: Image.Image | None = None,
    confidence: Any = None,
) -> Result:
    image = image or Image.new("RGB", (logits.shape[2], logits.shape[1]), (100, 100, 100))
    maps = AttentionMaps(torch.zeros(1, 1, 2, 2), WHOLE_IMAGE)
    groundings = [Grounding(each[None, ::2, ::2], MaskLogits(each[None]), maps) for each in logits]
    return collect(image, phrases, groundings, confidence)


@pytest.fixture
def known() -> Result:
    """A block, one pixel in the last corner, and nothing."""
    logits = torch.full((3, 12, 20), -2.0)
    logits[0, 2:6, 3:10] = 1.0
    logits[0, 2, 3] = 3.0
    logits[1, 11, 19] = 0.5
    return result_of(logits, ["the block", "é dot", "nothing"])


def test_boxes_and_scores_are_those_of_the_masks(known: Result) -> None:
    assert known.boxes.tolist() == [[3, 2, 10, 6], [19, 11, 20, 12], [0, 0, 0, 0]]
    assert known.boxes.dtype is torch.int64
    block = (27 * torch.tensor(1.0).sigmoid() + torch.tensor(3.0).sigmoid()) / 28
    wanted = torch.stack([block, torch.tensor(0.5).sigmoid(), torch.tensor(0.0)])
    torch.testing.assert_close(known.scores, wanted)
    assert known.masks.sum((1, 2)).tolist() == [28, 1, 0]
    assert known.coarse_logits.shape == (3, 6, 10)


def test_coco_records_survive_json_and_give_the_masks_back(known: Result) -> None:
    records = json.loads(json.dumps(known.to_coco()))
    assert [r["phrase"] for r in records] == ["the block", "é dot", "nothing"]
    assert [r["bbox"] for r in records] == [[3, 2, 7, 4], [19, 11, 1, 1], [0, 0, 0, 0]]
    assert [r["area"] for r in records] == [28, 1, 0]
    assert [r["score"] for r in records] == pytest.approx(known.scores.tolist())
    for record, mask in zip(records, known.masks, strict=True):
        assert np.array_equal(coco_mask.decode(record["segmentation"]).astype(bool), mask.numpy())


def test_masks_and_logits_are_made_where_they_are_asked_for() -> None:
    low = torch.randn(5, 8, 8, generator=torch.Generator().manual_seed(0)) * 4
    maps = AttentionMaps(torch.zeros(5, 1, 2, 2), WHOLE_IMAGE)
    groundings = [
        Grounding(part, MaskLogits(part, (400, 600)), maps) for part in torch.split(low, 2)
    ]
    result = collect(Image.new("RGB", (600, 400)), list("abcde"), groundings)
    held = pickle.dumps((result.refined, result.segmentations, result.coarse_logits))
    assert len(held) < 400 * 600  # less than a tenth of the masks
    wanted = F.interpolate(low[:, None], (400, 600), mode="bilinear")[:, 0]
    assert torch.equal(result.logits, wanted)
    assert torch.equal(result.masks, wanted > 0)
    assert result.masks is result.masks
    for number, mask in enumerate(result.masks):
        assert torch.equal(result.mask(number), mask)


def test_without_a_confidence_there_is_no_probability(known: Result) -> None:
    assert known.probabilities.isnan().all()
    assert [record["probability"] for record in known.to_coco()] == [None, None, None]
    with pytest.raises(UsageError) as error:
        known.abstain(0.5)
    assert str(error.value) == (
        "The head gives no probabilities, so it cannot say that a thing is not there.\n"
        "It was trained without validation data.\n"
        "Train it with --val-data."
    )


def test_a_mask_that_is_hardly_right_is_not_there_if_that_is_asked_for(known: Result) -> None:
    logits = 4 * known.logits
    logits[1, 6:, 10:] = 0.5
    sure = result_of(logits, list(known.phrases), confidence=lambda evidence: evidence / 2)
    assert torch.equal(sure.masks, logits > 0)
    assert sure.there.all()
    first, second, third = sure.probabilities.tolist()
    assert 0.5 > first > second > third == 0
    asked = sure.abstain(second + 1e-3)
    assert asked.there.tolist() == [True, False, False]
    assert asked.masks.sum((1, 2)).tolist() == [28, 0, 0]
    assert asked.boxes.tolist() == [[3, 2, 10, 6], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(asked.logits, sure.logits)
    records = asked.to_coco()
    assert [(r["there"], r["area"]) for r in records] == [(True, 28), (False, 0), (False, 0)]
    assert [r["probability"] for r in records] == [first, second, third]
    assert sure.abstain(second).there.tolist() == [True, True, False]
    assert sure.masks.sum() == 28 + 60  # the first result stays as it was


def test_the_overlay_paints_the_masks_and_a_line_around_them(known: Result) -> None:
    overlay = known.overlay(legend=False)
    assert (overlay.mode, overlay.size) == ("RGB", known.image.size)
    changed = (np.asarray(overlay) != 100).any(axis=2)
    masked = known.masks.any(dim=0)
    assert changed[masked.numpy()].all()
    near = F.max_pool2d(masked[None, None].float(), 5, stride=1, padding=2)[0, 0] > 0
    assert not changed[~near.numpy()].any()
    assert overlay.getpixel((3, 2)) == mask_color(0)  # the outline is opaque
    assert overlay.getpixel((19, 11)) != overlay.getpixel((6, 4))


def test_the_legend_stands_below_the_image(known: Result) -> None:
    sheet, bare = known.overlay(), known.overlay(legend=False)
    assert np.array_equal(np.asarray(sheet)[: bare.height, : bare.width], np.asarray(bare))
    below = np.asarray(sheet)[bare.height :].reshape(-1, 3).tolist()
    assert all(list(mask_color(number)) in below for number in range(3))


def test_the_overlay_leaves_the_image_as_it_was() -> None:
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    result_of(torch.ones(1, 8, 8), ["all"], image).overlay()
    assert image.getpixel((4, 4)) == (100, 100, 100)


def test_a_result_that_is_not_full_is_not_given() -> None:
    with pytest.raises(ValueError, match="0 masks for 1 phrases"):
        collect(Image.new("RGB", (4, 4)), ["one"], [])
