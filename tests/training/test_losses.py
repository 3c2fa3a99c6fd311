"""Losses against the original's numbers, and what they must not forget."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Grounding
from flmm_core.training.losses import (
    dice_loss,
    grounding_loss,
    mask_cross_entropy,
    resize_truth,
    to_refine,
)
from tests.heads import arrays


def grounding(coarse: Tensor, logits: Tensor) -> Grounding:
    maps = AttentionMaps(torch.zeros(len(coarse), 1, 2, 2), WHOLE_IMAGE)
    return Grounding(coarse, MaskLogits(logits), maps)


def random_batch(counts: list[int]) -> tuple[list[Grounding], list[Tensor]]:
    generator = torch.Generator().manual_seed(0)
    groundings, truths = [], []
    for count in counts:
        coarse = torch.randn(count, 6, 9, generator=generator, requires_grad=True)
        logits = torch.randn(count, 20, 30, generator=generator, requires_grad=True)
        groundings.append(grounding(coarse, logits))
        truths.append(torch.rand(count, 20, 30, generator=generator) > 0.6)
    return groundings, truths


def test_losses_and_their_gradient_are_the_originals() -> None:
    numbers = arrays("losses")
    logits = numbers["logits"].requires_grad_()
    dice = dice_loss(logits, numbers["targets"])
    cross_entropy = mask_cross_entropy(logits, numbers["targets"])
    for ours, theirs in (
        (dice, numbers["per_mask_dice"]),
        (dice.mean(), numbers["loss_dice"]),
        (cross_entropy, numbers["per_mask_ce"]),
        (cross_entropy.mean(), numbers["loss_mask"]),
    ):
        assert (ours - theirs).abs().max() <= 1e-5
    (dice.mean() + cross_entropy.mean()).backward()
    assert logits.grad is not None
    assert (logits.grad - numbers["grad_dice_plus_mask"]).abs().max() <= 1e-7


def test_every_mask_counts_the_same_whichever_sample_it_is_of() -> None:
    groundings, truths = random_batch([1, 3])
    batch = grounding_loss(groundings, truths)
    alone = [grounding_loss([g], [t]) for g, t in zip(groundings, truths, strict=True)]
    for part in (
        "coarse_dice",
        "coarse_cross_entropy",
        "refined_dice",
        "refined_cross_entropy",
        "total",
    ):
        first, second = (getattr(loss, part) for loss in alone)
        torch.testing.assert_close(getattr(batch, part), (first + 3 * second) / 4)


def test_the_total_is_the_sum_of_four() -> None:
    loss = grounding_loss(*random_batch([2]))
    four = (
        loss.coarse_dice,
        loss.coarse_cross_entropy,
        loss.refined_dice,
        loss.refined_cross_entropy,
    )
    assert all(part > 0 for part in four)
    torch.testing.assert_close(loss.total, torch.stack(four).sum())


def test_perfect_masks_cost_nothing_and_wrong_ones_much() -> None:
    truth = torch.zeros(1, 8, 8, dtype=torch.bool)
    truth[:, 2:5, 3:6] = True
    logits = torch.where(truth, 30.0, -30.0)
    assert grounding_loss([grounding(logits, logits)], [truth]).total < 1e-3
    assert grounding_loss([grounding(-logits, -logits)], [truth]).total > 30


def test_a_small_object_survives_area_but_not_nearest() -> None:
    truth = torch.zeros(1, 480, 640, dtype=torch.bool)
    truth[0, 101, 103] = True
    by_area = resize_truth(truth, (48, 64))
    assert by_area.sum() == pytest.approx(1 / 100)
    assert by_area[0, 10, 10] > 0
    assert not resize_truth(truth, (48, 64), nearest=True).any()


def test_truth_of_the_right_size_is_taken_as_it_is() -> None:
    truth = torch.rand(2, 5, 7) > 0.5
    torch.testing.assert_close(resize_truth(truth, (5, 7)), truth.float())


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("counts", [[0], [0, 0]])
def test_a_batch_without_masks_costs_nothing(counts: list[int], nearest: bool) -> None:
    groundings, truths = random_batch(counts)
    total = grounding_loss(groundings, truths, nearest=nearest).total
    assert total == 0
    total.backward()


def test_samples_without_masks_do_not_count() -> None:
    groundings, truths = random_batch([2, 0])
    with_empty = grounding_loss(groundings, truths).total
    torch.testing.assert_close(with_empty, grounding_loss(groundings[:1], truths[:1]).total)


def test_which_masks_are_refined_depends_on_nothing_but_the_seed() -> None:
    seeds = [(0, step, 7) for step in range(300)]
    chosen = torch.stack(to_refine([5] * 300, 2, seeds))
    assert chosen.sum(1).tolist() == [2] * 300
    assert chosen.float().mean(0) == pytest.approx([0.4] * 5, abs=0.1)
    alone = [to_refine([5], 2, [seed])[0] for seed in seeds]
    assert torch.equal(torch.stack(alone), chosen)
    few = to_refine([0, 1, 2], 2, seeds[:3])
    assert [each.tolist() for each in few] == [[], [True], [True, True]]
