"""Masks without a trained head: what is chosen on labeled samples, and what comes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flmm_core import Grounder, UsageError
from flmm_core.data.sources import open_source
from flmm_core.evaluation.baselines import (
    HEADS,
    LEVELS,
    METHODS,
    AttentionMasks,
    MaskMethod,
    best_channels,
    filled_boxes,
    heat,
    make_baseline,
    object_shares,
)
from flmm_core.evaluation.evaluate import evaluate
from flmm_core.loader.dataset import ExampleDataset
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Box
from tests.flows import fresh_grounder, method_of

PADDED: Box = (-0.5, 0.0, 1.5, 1.0)
"""Of a grid whose middle half of rows shows the image."""


def block(top: int, left: int, height: int = 8, width: int = 8, size: int = 32) -> Tensor:
    mask = torch.zeros(size, size, dtype=torch.bool)
    mask[top : top + height, left : left + width] = True
    return mask


def planted(truth: Tensor, good: int, channels: int = 6, seed: int = 0) -> AttentionMaps:
    """Noise on 8×8 cells but for one channel, which lies on the truth."""
    chance = torch.Generator().manual_seed(seed)
    maps = torch.rand(len(truth), channels, 8, 8, generator=chance) ** 20  # a few bright cells
    cells = torch.nn.functional.avg_pool2d(truth.float()[:, None], 4)[:, 0]
    maps[:, good] = cells + 0.01
    return AttentionMaps(maps / maps.sum((2, 3), keepdim=True), WHOLE_IMAGE)


TRUTHS = [torch.stack([block(4, 8), block(16, 20)]), block(20, 4)[None]]
LABELED = [(planted(truth, 4, seed=i), truth) for i, truth in enumerate(TRUTHS)]


def test_the_channel_that_lies_on_the_object_is_the_best() -> None:
    assert best_channels(LABELED, 1) == (4,)
    assert best_channels(LABELED, 3)[0] == 4
    assert set(best_channels(LABELED, 99)) == set(range(6))


def test_a_share_is_the_mass_on_the_truth_partly_covered_cells_by_their_part() -> None:
    maps = AttentionMaps(torch.tensor([[[[3.0, 1.0], [0.0, 0.0]]]]), WHOLE_IMAGE)
    truth = torch.zeros(1, 4, 4, dtype=torch.bool)
    truth[0, :, 0] = True  # half of both left cells
    assert object_shares(maps, truth).item() == pytest.approx(3 * 0.5 / 4)
    everything = torch.ones(1, 4, 4, dtype=torch.bool)
    assert object_shares(maps, everything).item() == pytest.approx(1)
    nothing = AttentionMaps(torch.zeros(1, 1, 2, 2), WHOLE_IMAGE)
    assert object_shares(nothing, everything).item() == 0


def test_what_lies_on_padding_does_not_count() -> None:
    grid = torch.zeros(1, 2, 8, 4)
    grid[0, :, 2:6, 1] = 1.0  # on the image, in its second quarter from the left
    grid[0, 1, :2] = grid[0, 1, 6:] = 5.0  # on the padding above and below
    maps = AttentionMaps(grid, PADDED)
    truth = torch.zeros(1, 16, 16, dtype=torch.bool)
    truth[0, :, 4:8] = True
    torch.testing.assert_close(object_shares(maps, truth), torch.ones(1, 2))
    first = heat(maps, None, (16, 16))
    assert (first.amin(), first.amax()) == (0, 1)
    assert first[0, 8].argmax() in (5, 6)


@pytest.mark.parametrize("channels", [None, (0,), (4, 2, 1)])
def test_heat_runs_from_0_to_1_at_the_images_size(channels: tuple[int, ...] | None) -> None:
    warmth = heat(LABELED[0][0], channels, (19, 41))
    assert warmth.shape == (2, 19, 41)
    assert warmth.amin((1, 2)).tolist() == [0, 0]
    assert warmth.amax((1, 2)).tolist() == [1, 1]


def test_a_map_that_is_the_same_everywhere_gives_no_mask() -> None:
    even = AttentionMaps(torch.full((1, 3, 4, 4), 1 / 16), WHOLE_IMAGE)
    assert heat(even, (0, 1), (8, 8)).amax() < 1e-3


def test_the_level_is_the_one_with_the_highest_mean_iou() -> None:
    method = AttentionMasks.fit(LABELED, (4,))
    assert method.level in LEVELS

    def mean_iou(level: float) -> float:
        ious = []
        for maps, truth in LABELED:
            found = heat(maps, (4,), (32, 32)) > level
            ious += ((found & truth).sum((1, 2)) / (found | truth).sum((1, 2))).tolist()
        return float(np.mean(ious))

    scores = [mean_iou(level) for level in LEVELS]
    assert scores[LEVELS.index(method.level)] == pytest.approx(max(scores))
    assert max(scores) > 0.9


def test_the_few_heads_beat_the_mean_of_all_where_one_head_is_right() -> None:
    truth = torch.stack([block(12, 12, 8, 12)])
    unseen = planted(truth, 4, seed=9)
    ious = {}
    for channels in (None, best_channels(LABELED, 1)):
        level = AttentionMasks.fit(LABELED, channels).level
        found = heat(unseen, channels, (32, 32)) > level
        ious[channels] = float((found & truth).sum() / (found | truth).sum())
    assert ious[(4,)] > ious[None] + 0.3


def test_boxes_are_filled_and_stay_empty_if_they_are() -> None:
    masks = torch.stack([block(3, 5, 2, 9) | block(20, 6, 1, 1), torch.zeros(32, 32).bool()])
    boxes = filled_boxes(masks)
    assert boxes.sum((1, 2)).tolist() == [18 * 9, 0]
    assert torch.equal(tight_boxes(boxes), tight_boxes(masks))
    assert (boxes | ~masks).all()


# --- behind a real model -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def grounder(random_twin: Path) -> Grounder:
    return fresh_grounder(Recipe("qwen", model=str(random_twin), base_channels=4, enlarge_to=16))


def baseline(name: str, grounder: Grounder, samples: Any) -> MaskMethod:
    if name == "head":
        return method_of(grounder)
    return make_baseline(name, grounder.observer, grounder.info.recipe, samples)


def batch_of(method: MaskMethod, samples: Any, count: int) -> Any:
    dataset = ExampleDataset(samples, method.source)
    return method.source.collate([dataset.example(number).inputs for number in range(count)])


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_what_the_head_gives(name: str, grounder: Grounder, drawn: Path) -> None:
    samples = open_source(f"refcoco:{drawn}@train", "flmm-paper")[:4]
    method = baseline(name, grounder, samples)
    assert method.name == name
    first, second = method.ground(batch_of(method, samples, 2))
    for grounding, sample in zip((first, second), samples, strict=False):
        assert grounding.logits.shape == (len(sample.phrases), *sample.image_hw)
        assert len(grounding.coarse_logits) == len(grounding.maps.maps) == len(sample.phrases)
        assert grounding.logits.isfinite().all()
        assert not grounding.logits.requires_grad
        if name != "head":
            assert grounding.coarse_logits.flatten(1).amax(1).min() > 0  # no mask is empty
    scores = evaluate(method, samples)
    assert scores.phrases == sum(len(sample.phrases) for sample in samples)


def test_baselines_use_nothing_that_was_trained(grounder: Grounder, drawn: Path) -> None:
    samples = open_source(f"refcoco:{drawn}@train", "flmm-paper")[:2]
    kept = {key: value.clone() for key, value in grounder.head.state_dict().items()}

    def masks() -> list[Tensor]:
        methods = [baseline(name, grounder, samples) for name in METHODS if name != "head"]
        return [method.ground(batch_of(method, samples, 1))[0].logits for method in methods]

    before = masks()
    try:
        with torch.no_grad():
            for value in grounder.head.state_dict().values():
                value.normal_()
        after = masks()
    finally:
        grounder.head.load_weights(kept)
    assert all(torch.equal(one, two) for one, two in zip(before, after, strict=True))


def test_the_chosen_attention_heads_have_names(grounder: Grounder, drawn: Path) -> None:
    samples = open_source(f"refcoco:{drawn}@train", "flmm-paper")[:2]
    method: Any = baseline("top-k-heads", grounder, samples)
    vlm = grounder.observer.vlm
    assert len(method.settings["heads"]) == HEADS
    chosen = zip(method.settings["heads"], method.decide.channels, strict=True)
    for (view, layer, head), channel in chosen:
        place = vlm.views.index(view) * vlm.layers + layer
        assert place * vlm.heads + head == channel


def test_what_cannot_be_made_is_refused(grounder: Grounder, random_twin: Path) -> None:
    with pytest.raises(UsageError) as error:
        baseline("top-k-head", grounder, ())
    assert str(error.value) == (
        "Unknown method 'top-k-head'. Did you mean 'top-k-heads'?\n"
        "Known: head, attention-mean, top-k-heads, box+sam."
    )
    with pytest.raises(UsageError) as error:
        baseline("attention-mean", grounder, ())
    assert str(error.value) == (
        "The method 'attention-mean' needs labeled samples.\n"
        "None of the 0 given has an object.\n"
        "Give data with masks."
    )
    bare = fresh_grounder(Recipe("qwen", model=str(random_twin), refiner="none", base_channels=4))
    with pytest.raises(UsageError) as error:
        baseline("box+sam", bare, ())
    assert str(error.value) == (
        "The method 'box+sam' needs a SAM.\n"
        "The head was trained with --refiner none.\n"
        "Use a head with SAM behind it, or the method 'top-k-heads'."
    )
