"""Masks without a trained head, for comparison.

    attention-mean  the mean of all attention maps
    top-k-heads     the mean of the few maps with most of their mass on the object
    box+sam         pretrained SAM, prompted with the box of these few maps

Nothing is trained. The heads, and the threshold on the normalized map, are chosen on a few
labeled samples of the head's training data.

That a few heads of a frozen model localize objects is from Kang et al., "Your Large
Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding" (CVPR 2025). They
find them without labels, by attention mass on the image and spatial entropy; here they are those
with the highest share of their mass on the truth. As there, their maps are smoothed and added.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor

from flmm_core.config import Workers
from flmm_core.data.sample import Sample
from flmm_core.errors import UsageError, did_you_mean
from flmm_core.evaluation.benchmark_folder import MethodName
from flmm_core.evaluation.rows_from_masks import intersection_union
from flmm_core.loader.dataset import ExampleDataset, FeatureSource, ObservedFeatures, read_batches
from flmm_core.loader.samplers import fixed_batches, spread
from flmm_core.pipeline.attention_maps import SMALLEST_SUM
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.build import Recipe, load_refiner, refiner_class
from flmm_core.pipeline.confidence import Confidence
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.observer import Observer
from flmm_core.pipeline.refiners.base import Refiner
from flmm_core.pipeline.resample import resample, resize_truth
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Features, Grounding
from flmm_core.progress import Stage

logger = logging.getLogger(__name__)

METHODS: tuple[str, ...] = get_args(MethodName)
HEADS = 3
"""Number of attention heads of `top-k-heads` and `box+sam`, as in the paper."""
SAMPLES = 32
"""Maximum number of labeled samples, spread evenly over those given."""
LEVELS = tuple(number / 20 for number in range(1, 20))
SMOOTHED = 24
"""Sigma of the Gaussian that smooths maps, as a fraction of their longest side: 1/24."""
SURE = 2.0
"""Logit inside a box that is passed as a mask; outside it is negative."""

Labeled = tuple[AttentionMaps, Tensor]
"""The maps of P phrases and their nonempty true masks, (P, H, W) bool; on the CPU."""


@dataclass(frozen=True)
class MaskMethod:
    """Predicts masks from samples.

    Attributes:
        name: One of `METHODS`.
        decide: Predicts one `Grounding` per sample.
        layer_weights: See `Backbone.trace`.
        settings: What was chosen on labeled samples, ready for JSON.
        calibrate: Maps evidence to probabilities; None without any.
        abstain_below: Answer "not there" below this probability; None: never.
    """

    name: str
    source: FeatureSource
    decide: Callable[[Sequence[Features]], tuple[Grounding, ...]]
    layer_weights: Sequence[float] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    calibrate: Confidence | None = None
    abstain_below: float | None = None

    @torch.no_grad()
    def ground(self, batch: Any) -> tuple[Grounding, ...]:
        """One `Grounding` per sample of a batch from `source`."""
        return self.decide(self.source.features(batch, layer_weights=self.layer_weights))


def head_method(
    source: FeatureSource,
    head: Head,
    confidence: Confidence | None = None,
    abstain_below: float | None = None,
) -> MaskMethod:
    """The masks of a head."""
    return MaskMethod("head", source, head, head.layer_weights(), {}, confidence, abstain_below)


def check_method(name: str) -> None:
    """UsageError if there is no such method."""
    if name not in METHODS:
        raise UsageError(
            f"Unknown method '{name}'. {did_you_mean(name, METHODS)}".rstrip(),
            found=f"Known: {', '.join(METHODS)}.",
        )


def make_baseline(
    name: str,
    observer: Observer,
    recipe: Recipe,
    samples: Sequence[Sample],
    refiner_weights: Path | None = None,
) -> MaskMethod:
    """A method without training, fitted on a few labeled samples.

    Args:
        name: One of `METHODS`, but not "head".
        recipe: Its refiner is used by `box+sam`, with pretrained weights.
        refiner_weights: Weights file of the refiner.

    Raises:
        UsageError: There is no such method, no sample has an object, or the refiner takes no
            boxes.
        WeightsError: The weights of the refiner are missing.
    """
    check_method(name)
    sam = None
    if name == "box+sam":
        sam = box_refiner(recipe, refiner_weights).to(observer.device)
    source = ObservedFeatures(
        replace(observer, ends=0, channels=(), encoder=observer.encoder if sam else None)
    )
    labeled = list(labeled_maps(source, spread(samples, SAMPLES)))
    if not labeled:
        raise UsageError(
            f"The method '{name}' needs labeled samples.",
            found=f"None of the {len(samples)} given has an object.",
            repair="Give data with masks.",
        )
    channels = None if name == "attention-mean" else best_channels(labeled)
    decide = AttentionMasks.fit(labeled, channels, sam)
    settings: dict[str, Any] = {"level": decide.level}
    if channels is not None:
        vlm = observer.vlm
        places = [(channel // vlm.heads, channel % vlm.heads) for channel in channels]
        settings["heads"] = [
            [vlm.views[row // vlm.layers], row % vlm.layers, head] for row, head in places
        ]
    return MaskMethod(name, source, decide, settings=settings)


@dataclass(frozen=True)
class AttentionMasks:
    """The sum of some attention maps, above a threshold.

    Attributes:
        channels: The maps that are smoothed and added; None adds all, unsmoothed.
        level: The threshold, 0 to 1 between the map's minimum and maximum in the image.
        refiner: From `box_refiner`, prompted with the boxes of these masks.
    """

    channels: tuple[int, ...] | None
    level: float
    refiner: Refiner | None = None

    @classmethod
    def fit(
        cls,
        labeled: Sequence[Labeled],
        channels: tuple[int, ...] | None = None,
        refiner: Refiner | None = None,
    ) -> AttentionMasks:
        """Choose the lowest of the `LEVELS` with the highest mean IoU.

        It is the IoU of the filled boxes if there is a refiner.
        """
        shape = torch.Tensor.bool if refiner is None else filled_boxes
        overlap = np.zeros(len(LEVELS))
        for maps, truth in labeled:
            size = (truth.shape[-2], truth.shape[-1])
            warmth, wanted = heat(maps, channels, size), shape(truth)
            for place, level in enumerate(LEVELS):
                both, either = intersection_union(shape(warmth > level), wanted)
                overlap[place] += np.divide(both, either).sum()
        return cls(channels, LEVELS[int(overlap.argmax())], refiner)

    def __call__(self, features: Sequence[Features]) -> tuple[Grounding, ...]:
        """One `Grounding` per sample."""
        coarse = []
        for sample in features:
            warmth = heat(sample.maps, self.channels, sample.image_hw)
            coarse.append(warmth.logit(eps=1e-6) - torch.tensor(self.level).logit())
        final: Sequence[MaskLogits] = [MaskLogits(logits) for logits in coarse]
        if self.refiner is not None:
            boxes = [torch.where(filled_boxes(each > 0), SURE, -SURE) for each in coarse]
            images = [sample.image for sample in features]
            final = self.refiner(images, boxes, (), [sample.image_hw for sample in features])
        return tuple(
            Grounding(coarse_logits=first, refined=last, maps=sample.maps)
            for first, last, sample in zip(coarse, final, features, strict=True)
        )


def box_refiner(recipe: Recipe, weights: Path | None = None) -> Refiner:
    """The recipe's SAM with its pretrained weights, prompted with boxes.

    An official SAM gets the box alone. The tiny one was trained on masks and boxes together, so
    it also gets the filled box as a mask.

    Raises:
        UsageError: The refiner takes no boxes.
        WeightsError: The weights of the refiner are missing.
    """
    options = refiner_class(recipe)[1].model_dump()
    if "box" not in options:
        raise UsageError(
            "The method 'box+sam' needs a SAM.",
            found=f"The head was trained with --refiner {recipe.refiner}.",
            repair="Use a head with SAM behind it, or the method 'top-k-heads'.",
        )
    by_box = {**options, "box": True, "mask": options["size"] == "tiny", "text": False}
    by_box["multimask"] = False
    recipe = replace(recipe, refiner_options=by_box, paper_rounding=False)
    return load_refiner(recipe, weights)[1].requires_grad_(False).eval()


def best_channels(labeled: Sequence[Labeled], count: int = HEADS) -> tuple[int, ...]:
    """The `count` channels with the highest mean share of their mass on the object, best first."""
    shares = channel_shares(labeled)
    return tuple(shares.topk(min(count, len(shares))).indices.tolist())


def channel_shares(labeled: Sequence[Labeled]) -> Tensor:
    """(C,) the mean share of each channel's mass that lies on the object."""
    return torch.cat([object_shares(maps, truth) for maps, truth in labeled]).mean(0)


def object_shares(maps: AttentionMaps, truth: Tensor) -> Tensor:
    """The share of each map's mass in the image that lies on the truth.

    Args:
        maps: (P, C, h, w).
        truth: (P, H, W) bool.

    Returns:
        (P, C), 0 to 1. A cell counts by the fraction of its area that the truth covers.
    """
    y0, x0, y1, x1 = maps.image_box
    h, w = maps.maps.shape[-2:]
    size = max(1, round(h / (y1 - y0))), max(1, round(w / (x1 - x0)))
    inside = resample(maps.maps, maps.image_box, WHOLE_IMAGE, size)  # (P, C, *size)
    covered = resize_truth(truth.to(inside.device), size)[:, None]  # (P, 1, *size)
    return (inside * covered).sum((2, 3)) / inside.sum((2, 3)).clamp(min=SMALLEST_SUM)


def heat(maps: AttentionMaps, channels: Sequence[int] | None, image_hw: tuple[int, int]) -> Tensor:
    """The sum of some maps at the size of the image, scaled from 0 to 1; see `AttentionMasks`.

    Returns:
        (P, H, W); zeros for a constant map.
    """
    chosen = maps.maps if channels is None else _smooth(maps.maps[:, list(channels)])
    total = chosen.sum(1, keepdim=True)  # (P, 1, h, w)
    whole = resample(total, maps.image_box, WHOLE_IMAGE, image_hw)[:, 0]  # (P, H, W)
    least, greatest = whole.amin((1, 2), keepdim=True), whole.amax((1, 2), keepdim=True)
    return (whole - least) / (greatest - least).clamp(min=SMALLEST_SUM)


def filled_boxes(masks: Tensor) -> Tensor:
    """(P, H, W) bool masks -> (P, H, W) bool, their tight boxes filled."""
    x0, y0, x1, y1 = tight_boxes(masks)[:, :, None].unbind(1)  # (P, 1) each
    rows = torch.arange(masks.shape[1], device=masks.device)
    columns = torch.arange(masks.shape[2], device=masks.device)
    high, wide = (y0 <= rows) & (rows < y1), (x0 <= columns) & (columns < x1)
    return high[:, :, None] & wide[:, None]


def _smooth(maps: Tensor) -> Tensor:
    """(P, C, h, w) -> the same, blurred by a Gaussian."""
    h, w = maps.shape[-2:]
    sigma = max(h, w) / SMOOTHED  # in cells
    rows, columns = (
        torch.softmax(-((place[:, None] - place) ** 2) / (2 * sigma**2), dim=1)
        for place in (torch.arange(side, device=maps.device, dtype=maps.dtype) for side in (h, w))
    )
    return rows @ maps @ columns.T


@torch.no_grad()
def labeled_maps(
    source: FeatureSource,
    samples: Sequence[Sample],
    *,
    batch_size: int = 8,
    workers: Workers = 0,
    stage: Stage | None = None,
) -> Iterator[Labeled]:
    """The maps and true masks of the phrases with an object, by sample; `stage` counts samples.

    Samples that cannot be used are logged and left out.
    """
    dataset, batches = ExampleDataset(samples, source), fixed_batches(len(samples), batch_size)
    for batch, unusable in read_batches(dataset, batches, workers=workers):
        for one in unusable:
            logger.warning("left out: %s", " ".join(str(one.error).splitlines()))
        if batch is None:
            continue
        for features, truth in zip(source.features(batch.inputs), batch.truths, strict=True):
            there = truth.flatten(1).any(1)
            if there.any():
                yield features.of_phrases(there).maps.each(Tensor.cpu), truth[there]
            if stage is not None:
                stage.advance()
