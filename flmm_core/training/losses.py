"""The training loss: of the coarse and refined masks, and of whether a phrase names anything."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.data import rle
from flmm_core.data.sample import Sample
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.resample import Box, resize_truth
from flmm_core.pipeline.types import Features, Grounding


@dataclass(frozen=True)
class Counts:
    """What the means of a step are over.

    Attributes:
        phrases: All phrases.
        masks: Those whose masks are trained.
        refined: Those of which the refined masks are trained.
        narrations: Captions from which keywords are learned.
    """

    phrases: int = 0
    masks: int = 0
    refined: int = 0
    narrations: int = 0

    @classmethod
    def of(cls, head: Head, samples: Sequence[Sample], most: int | None = None) -> Counts:
        """Those of some samples, known before the models see them; `most`: see `to_refine`."""
        every = [len(sample.phrases) for sample in samples]
        masks = every
        if head.presence is not None:
            masks = [sum(bool(rle.area(one.mask)) for one in sample.phrases) for sample in samples]
        refined = sum(masks if most is None else (min(most, count) for count in masks))
        narrations = sum(sample.narrated for sample in samples)
        return cls(sum(every), sum(masks), refined, narrations)

    def __add__(self, other: Counts) -> Counts:
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Counts(*(one + more for one, more in pairs))


def to_refine(counts: Sequence[int], most: int, seeds: Sequence[Sequence[int]]) -> list[Tensor]:
    """Which masks of each sample are refined: `most` at random, or all if there are not more.

    Args:
        counts: P, the masks of each sample.
        seeds: A few numbers per sample, which decide.

    Returns:
        (P,) bool each.
    """
    chosen = []
    for count, seed in zip(counts, seeds, strict=True):
        places = np.random.default_rng(seed).permutation(count)
        chosen.append(torch.from_numpy(places < most))
    return chosen


@dataclass(frozen=True)
class GroundingLoss:
    """Means over all masks of a batch, each a scalar tensor; 0 for a batch without masks.

    `presence` is a mean over all phrases, None if the head does not tell presence; `keywords` one
    over all narrations, None if the head does not select keywords. Of a part of a step,
    the means are over the whole step's phrases (`Counts`), so that parts add up.
    """

    coarse_dice: Tensor
    coarse_cross_entropy: Tensor
    refined_dice: Tensor
    refined_cross_entropy: Tensor
    presence: Tensor | None = None
    keywords: Tensor | None = None

    @classmethod
    def nothing(cls, head: Head) -> GroundingLoss:
        """That of no phrases."""
        zero = torch.zeros((), device=head.device)
        told = (None if part is None else zero for part in (head.presence, head.keywords))
        return cls(zero, zero, zero, zero, *told)

    def plus(self, figures: Tensor) -> GroundingLoss:
        """The same with a number added to each of its parts, without their graph."""
        summed = (torch.stack([*self.parts.values()]).detach() + figures).unbind()
        return GroundingLoss(**dict(zip(self.parts, summed, strict=True)))

    @property
    def parts(self) -> dict[str, Tensor]:
        """By name."""
        return {name: part for name, part in vars(self).items() if part is not None}

    @property
    def total(self) -> Tensor:
        """The sum of the parts, weight 1 each."""
        return sum(self.parts.values(), torch.zeros(()))


def head_loss(
    head: Head,
    features: Sequence[Features],
    truths: Sequence[Tensor],
    *,
    there: Sequence[Tensor] | None = None,
    narrated: Sequence[bool] | None = None,
    nearest: bool = False,
    counts: Counts | None = None,
    refine: Sequence[Tensor] | None = None,
) -> tuple[Sequence[Grounding], GroundingLoss]:
    """What a head makes of a batch, and its loss; arguments as in `grounding_loss`.

    A head that tells presence learns masks from phrases with a target only, and presence, by
    binary cross-entropy, from all. Any other head learns empty masks where there is no target.

    Args:
        there: Per sample, (P,) bool, whether a phrase has a target; by default those whose truth
            is not empty.
        narrated: Per sample, whether keywords are learned from its caption; by default from none.
        counts: Of the step that the batch is a part of; by default the batch is all of it.
        refine: Per sample, bool for each phrase whose masks are trained, whether its refined mask
            is; by default all.
    """
    if head.presence is None:
        groundings = head(features, refine=refine)
        loss = grounding_loss(groundings, truths, nearest=nearest, counts=counts, refine=refine)
    else:
        there = there or [truth.flatten(1).any(1) for truth in truths]
        groundings = head(features, there, refine)
        found = [truth[which] for truth, which in zip(truths, there, strict=True)]
        told = torch.cat([one.there_logits for one in groundings if one.there_logits is not None])
        right = torch.cat(list(there)).to(told)
        presence = F.binary_cross_entropy_with_logits(told, right, reduction="sum")
        loss = grounding_loss(groundings, found, nearest=nearest, counts=counts, refine=refine)
        phrases = len(told) if counts is None else counts.phrases
        loss = replace(loss, presence=presence / max(1, phrases))
    if head.keywords is not None:
        own = narrated or [False] * len(features)
        learned = [
            keyword_loss(grounding.keywords.logits, one.caption.phrase)
            for grounding, one, is_own in zip(groundings, features, own, strict=True)
            if is_own and grounding.keywords is not None and one.caption is not None
        ]
        count = len(learned) if counts is None else counts.narrations
        total = sum(learned, torch.zeros((), device=head.device))
        loss = replace(loss, keywords=total / max(1, count))
    return groundings, loss


def keyword_loss(logits: Tensor, phrase: Tensor) -> Tensor:
    """Binary cross-entropy of a caption's tokens, a scalar mean.

    Args:
        logits: (T, 2) as in `KeywordLogits`.
        phrase: (T,) as in `CaptionStates`.
    """
    inside = phrase >= 0
    before = torch.cat([phrase.new_full((1,), -1), phrase[:-1]])
    right = torch.stack([inside & (phrase != before), inside], 1).to(logits)
    return F.binary_cross_entropy_with_logits(logits, right)


def processed_truth(truth: Tensor, image_box: Box, square: int) -> Tensor:
    """(P, H, W) truth at the size of the image that the VLM sees, as the original F-LMM trains.

    Args:
        image_box: Of a view that shows the whole square.
        square: The side of the square in pixels, of which the resized image is a part.
    """
    y0, x0, y1, x1 = image_box
    size = round(square / (y1 - y0)), round(square / (x1 - x0))
    return resize_truth(truth, size, nearest=True)


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - (2 sum(p t) + 1) / (sum(p) + sum(t) + 1) of each mask.

    Args:
        logits: (P, h, w).
        truth: (P, h, w) in [0, 1].

    Returns:
        (P,), in [0, 1].
    """
    probs, truth = logits.float().sigmoid().flatten(1), truth.float().flatten(1)
    overlap = (probs * truth).sum(1)
    return 1 - (2 * overlap + 1) / (probs.sum(1) + truth.sum(1) + 1)


def mask_cross_entropy(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy of each mask, mean over its pixels; arguments as in `dice_loss`."""
    loss = F.binary_cross_entropy_with_logits(logits.float(), truth.float(), reduction="none")
    return loss.flatten(1).mean(1)


def grounding_loss(
    groundings: Sequence[Grounding],
    truths: Sequence[Tensor],
    *,
    nearest: bool = False,
    counts: Counts | None = None,
    refine: Sequence[Tensor] | None = None,
) -> GroundingLoss:
    """Loss of a batch; every mask has the same weight.

    Args:
        truths: Per sample, (P, H, W) bool or 0/1 at the image's size.
        nearest: See `resize_truth`.
        counts: Of the masks that the means are over; by default the batch's own.
        refine: Per sample, (P,) bool, which masks were refined; by default all.
    """
    parts: list[list[Tensor]] = [[], [], [], []]
    for number, (grounding, truth) in enumerate(zip(groundings, truths, strict=True)):
        refined = grounding.logits
        every = truth.to(refined.device)
        some = every if refine is None else every[refine[number]]
        for offset, logits, right in ((0, grounding.coarse_logits, every), (2, refined, some)):
            size = (logits.shape[-2], logits.shape[-1])
            resized = resize_truth(right, size, nearest=nearest)
            parts[offset].append(dice_loss(logits, resized))
            parts[offset + 1].append(mask_cross_entropy(logits, resized))
    masks, refined_masks = sum(map(len, parts[0])), sum(map(len, parts[2]))
    if counts is not None:
        masks, refined_masks = counts.masks, counts.refined
    over = masks, masks, refined_masks, refined_masks
    sums = (torch.cat(values).sum() for values in parts)
    return GroundingLoss(*(total / max(1, n) for total, n in zip(sums, over, strict=True)))
