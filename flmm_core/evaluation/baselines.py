"""Masks without a trained head, so that a user sees what the head adds.

    attention-mean  the mean of all attention maps
    top-k-heads     the mean of the few maps that put most of their mass on what is meant
    box+sam         SAM as it is shipped, shown the box of these few maps

Nothing is trained. What has to be chosen is chosen on a few labelled samples, which the head had
for training as well: the few heads, and the level (0 to 1 between a map's least and greatest
value) above which a pixel is inside.

That a few heads of a frozen model locate things is from Kang et al., "Your Large Vision-Language
Model Only Needs A Few Attention Heads For Visual Grounding" (CVPR 2025). They find them without
labels, by how much attention goes to the image and how little it is scattered; here they are
those with the highest share of their mass on the truth, mean over the samples. As there, their
maps are smoothed and added.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, get_args

import numpy as np
import torch
from torch import Tensor

from flmm_core.data.sample import Sample
from flmm_core.errors import UsageError, did_you_mean
from flmm_core.evaluation.metrics.masks import intersection_union
from flmm_core.evaluation.phrase_rows import Method as MethodName
from flmm_core.loader.dataset import ExampleDataset, load_batches
from flmm_core.pipeline.attention_maps import SMALLEST_SUM, attention_maps
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.grounder import Grounder, GrounderBatch
from flmm_core.pipeline.refiners.sam import SamRefiner
from flmm_core.pipeline.refiners.sam_model import OFFICIAL, build_sam
from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_PICTURE, AttentionMaps, Grounding
from flmm_core.training.losses import resize_truth

METHODS: tuple[str, ...] = get_args(MethodName)
HEADS = 3
"""How many heads `top-k-heads` and `box+sam` take, as the paper does."""
SAMPLES = 32
"""At most this many labelled samples are looked at, spread evenly over those that are given."""
LEVELS = tuple(number / 20 for number in range(1, 20))
SMOOTHED = 24
"""Maps are smoothed by a Gaussian of one cell where their longest side has so many cells."""
SURE = 2.0
"""Logit inside a box that is shown as a mask, and minus that outside."""

Labelled = tuple[AttentionMaps, Tensor]
"""The maps of some phrases and their truth, (P, H, W) bool, none of it empty; on the CPU."""


class Method(Protocol):
    """A way from a batch to masks."""

    @property
    def name(self) -> str:
        """One of `METHODS`."""
        ...

    def __call__(self, batch: GrounderBatch) -> tuple[Grounding, ...]:
        """One `Grounding` a sample, as `Grounder.forward` gives it."""
        ...


def make_method(
    name: str,
    grounder: Grounder,
    samples: Sequence[Sample] = (),
    *,
    heads: int = HEADS,
    refiner_weights: Path | None = None,
) -> Method:
    """The method of a name, behind the frozen parts of a grounder.

    Args:
        name: One of `METHODS`; "head" is the grounder itself.
        grounder: Its backbone is read, and its kind of SAM is taken, but nothing that was trained.
        samples: Labelled; not looked at for "head".
        heads: How many heads `top-k-heads` and `box+sam` take.
        refiner_weights: SAM's own file, where the grounder has an official SAM.

    Raises:
        UsageError: There is no such method, no sample says where something is, or the grounder
            has no SAM for `box+sam`.
        WeightsError: SAM's own file is needed and missing.
    """
    if name not in METHODS:
        raise UsageError(
            f"Unknown method '{name}'. {did_you_mean(name, METHODS)}".rstrip(),
            found=f"Known: {', '.join(METHODS)}.",
        )
    if name == "head":
        return grounder
    sam = frozen_sam(grounder, refiner_weights) if name == "box+sam" else None
    labelled = list(_read_labelled(grounder, samples))
    if not labelled:
        raise UsageError(
            f"The method '{name}' needs labelled samples.",
            found=f"None of the {len(samples)} given says where something is.",
            repair="Give data with masks.",
        )
    if name == "attention-mean":
        return AttentionMethod.fit(name, grounder, labelled)
    channels = best_channels(labelled, heads)
    if sam is None:
        return AttentionMethod.fit(name, grounder, labelled, channels)
    boxes = AttentionMethod.fit(name, grounder, labelled, channels, shape=filled_boxes)
    return BoxSamMethod(boxes, sam)


@dataclasses.dataclass(frozen=True)
class AttentionMethod:
    """The sum of some attention maps, above a level.

    Attributes:
        name: One of `METHODS`.
        grounder: Whose backbone is read.
        channels: Which maps are added, smoothed; None adds all as they are.
        level: From 0, the map's least value in the image, to 1, its greatest.
    """

    name: str
    grounder: Grounder
    channels: tuple[int, ...] | None
    level: float

    @classmethod
    def fit(
        cls,
        name: str,
        grounder: Grounder,
        labelled: Sequence[Labelled],
        channels: tuple[int, ...] | None = None,
        *,
        shape: Callable[[Tensor], Tensor] = lambda masks: masks,
    ) -> AttentionMethod:
        """Choose the level of `LEVELS` with the highest mean IoU; of equal ones the lowest.

        Args:
            name: One of `METHODS`.
            grounder: Whose backbone is read.
            labelled: What to choose on, at least one.
            channels: See the class.
            shape: What is made of a mask, found and true, before they are compared.
        """
        overlap = np.zeros(len(LEVELS))
        for maps, truth in labelled:
            warmth, wanted = heat(maps, channels, _size(truth)), shape(truth)
            for place, level in enumerate(LEVELS):
                both, either = intersection_union(shape(warmth > level), wanted)
                overlap[place] += (both / either).sum()
        return cls(name, grounder, channels, LEVELS[int(overlap.argmax())])

    @property
    def settings(self) -> dict[str, Any]:
        """What was chosen, ready for JSON; `heads` are (view, layer, head), counted from 0."""
        chosen: dict[str, Any] = {"level": self.level}
        if self.channels is not None:
            backbone = self.grounder.backbone
            grid = len(backbone.view_names), backbone.num_layers, backbone.num_heads
            places = np.stack(np.unravel_index(self.channels, grid), axis=1)
            chosen["heads"] = [
                [backbone.view_names[view], layer, head] for view, layer, head in places.tolist()
            ]
        return chosen

    @torch.no_grad()
    def __call__(self, batch: GrounderBatch) -> tuple[Grounding, ...]:
        """Logits at the image's size, the coarse ones the same."""
        groundings = []
        for maps, image_hw in zip(_maps(self.grounder, batch), batch.image_hw, strict=True):
            warmth = heat(maps, self.channels, image_hw)
            logits = warmth.logit(eps=1e-6) - torch.tensor(self.level).logit()
            groundings.append(Grounding(coarse_logits=logits, logits=logits, maps=maps))
        return tuple(groundings)


@dataclasses.dataclass(frozen=True)
class BoxSamMethod:
    """SAM shown the tight box of what an attention method finds.

    Attributes:
        boxes: The attention method; its masks are the coarse ones.
        sam: See `frozen_sam`.
    """

    boxes: AttentionMethod
    sam: SamRefiner

    @property
    def name(self) -> str:
        """One of `METHODS`."""
        return self.boxes.name

    @property
    def settings(self) -> dict[str, Any]:
        """What was chosen, ready for JSON."""
        return self.boxes.settings

    @torch.no_grad()
    def __call__(self, batch: GrounderBatch) -> tuple[Grounding, ...]:
        """One `Grounding` a sample."""
        found = self.boxes(batch)
        boxes = [torch.where(filled_boxes(each.masks), SURE, -SURE) for each in found]
        pictures = [picture for picture in batch.pictures if picture is not None]
        logits = self.sam(pictures, boxes, (), batch.image_hw)
        return tuple(
            dataclasses.replace(each, logits=refined)
            for each, refined in zip(found, logits, strict=True)
        )


def frozen_sam(grounder: Grounder, weights: Path | None = None) -> SamRefiner:
    """The grounder's kind of SAM with the weights that it is shipped with, prompted by boxes.

    An official SAM is shown the box alone. A small one was only ever shown masks and boxes
    together, so it sees the box filled as a mask beside it.

    Raises:
        UsageError: The grounder has no SAM.
        WeightsError: SAM's own file is needed and missing.
    """
    trained = grounder.refiner
    if not isinstance(trained, SamRefiner):
        raise UsageError(
            "The method 'box+sam' needs a SAM.",
            found="The head was trained with --refiner none.",
            repair="Use a head with a refiner, or the method 'top-k-heads'.",
        )
    parts = build_sam(trained.sam_name, weights)
    # The image encoder is frozen in training too: the largest part need not be held twice.
    parts = dataclasses.replace(parts, image_encoder=trained.image_encoder)
    sam = SamRefiner(parts, use_mask=trained.sam_name not in OFFICIAL, use_text=False)
    return sam.requires_grad_(False).to(trained.pixel_mean.device).eval()


def best_channels(labelled: Sequence[Labelled], count: int = HEADS) -> tuple[int, ...]:
    """The channels with the highest share of their mass on what is meant, best first.

    Args:
        labelled: What to choose on; every phrase weighs the same.
        count: How many; all if there are fewer.
    """
    shares = torch.cat([object_shares(maps, truth) for maps, truth in labelled]).mean(0)  # (C,)
    return tuple(shares.topk(min(count, len(shares))).indices.tolist())


def object_shares(maps: AttentionMaps, truth: Tensor) -> Tensor:
    """How much of each map's mass in the image lies on the truth.

    Args:
        maps: (P, C, h, w).
        truth: (P, H, W) bool.

    Returns:
        (P, C), from 0 to 1. A cell that the truth covers in part counts by that part.
    """
    y0, x0, y1, x1 = maps.image_box
    h, w = maps.maps.shape[-2:]
    size = max(1, round(h / (y1 - y0))), max(1, round(w / (x1 - x0)))
    inside = resample(maps.maps, maps.image_box, WHOLE_PICTURE, size)  # (P, C, *size)
    covered = resize_truth(truth.to(inside.device), size)[:, None]  # (P, 1, *size)
    return (inside * covered).sum((2, 3)) / inside.sum((2, 3)).clamp(min=SMALLEST_SUM)


def heat(maps: AttentionMaps, channels: Sequence[int] | None, image_hw: tuple[int, int]) -> Tensor:
    """The sum of some maps at the image's size, from 0 at its least to 1 at its greatest value.

    Args:
        maps: (P, C, h, w).
        channels: Which to add, smoothed; None adds all as they are.
        image_hw: Height and width of the image in pixels.

    Returns:
        (P, H, W); zeros where a map is the same everywhere.
    """
    chosen = maps.maps if channels is None else _smooth(maps.maps[:, list(channels)])
    total = chosen.sum(1, keepdim=True)  # (P, 1, h, w)
    picture = resample(total, maps.image_box, WHOLE_PICTURE, image_hw)[:, 0]  # (P, H, W)
    least, greatest = picture.amin((1, 2), keepdim=True), picture.amax((1, 2), keepdim=True)
    return (picture - least) / (greatest - least).clamp(min=SMALLEST_SUM)


def filled_boxes(masks: Tensor) -> Tensor:
    """(P, H, W) bool masks -> (P, H, W) bool, all inside their tight boxes."""
    x0, y0, x1, y1 = tight_boxes(masks)[:, :, None].unbind(1)  # (P, 1) each
    rows = torch.arange(masks.shape[1], device=masks.device)
    columns = torch.arange(masks.shape[2], device=masks.device)
    high, wide = (y0 <= rows) & (rows < y1), (x0 <= columns) & (columns < x1)
    return high[:, :, None] & wide[:, None]


def _smooth(maps: Tensor) -> Tensor:
    """(P, C, h, w) -> the same, each cell a Gaussian mean of those around it."""
    h, w = maps.shape[-2:]
    sigma = max(h, w) / SMOOTHED  # in cells
    rows, columns = (
        torch.softmax(-((place[:, None] - place) ** 2) / (2 * sigma**2), dim=1)
        for place in (torch.arange(side, device=maps.device, dtype=maps.dtype) for side in (h, w))
    )
    return rows @ maps @ columns.T


def _maps(grounder: Grounder, batch: GrounderBatch) -> list[AttentionMaps]:
    return [
        attention_maps(trace)
        for trace in grounder.backbone.trace(batch.backbone, pool=grounder.pool)
    ]


@torch.no_grad()
def _read_labelled(grounder: Grounder, samples: Sequence[Sample]) -> Iterator[Labelled]:
    """The phrases that name something, of a few samples."""
    places = np.unique(np.linspace(0, len(samples) - 1, min(SAMPLES, len(samples))).round())
    few = [samples[int(place)] for place in places]
    for batch in load_batches(ExampleDataset(few, grounder), batch_size=8):
        for maps, truth in zip(_maps(grounder, batch.inputs), batch.truths, strict=True):
            there = truth.flatten(1).any(1)
            if there.any():
                kept = maps.maps[there.to(maps.maps.device)].cpu()
                yield AttentionMaps(kept, maps.image_box), truth[there]


def _size(masks: Tensor) -> tuple[int, int]:
    return masks.shape[-2], masks.shape[-1]
