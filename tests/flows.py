"""Flows of toy parts, and one without a model that knows the truth of its samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flmm_core.data import rle
from flmm_core.data.sample import Sample
from flmm_core.evaluation.baselines import MaskMethod, head_method
from flmm_core.loader.dataset import FeatureSource, ObservedFeatures
from flmm_core.pipeline.build import Recipe, build_flow
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import HeadInfo
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.observer import Observer, ObserverInputs
from flmm_core.pipeline.pooling import LearnedPooling
from flmm_core.pipeline.refiners.sam import SamEncoder, SamRefiner
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Features, Grounding
from tests.heads import SMALL_SAM, small_sam

SMALL = Any


def fresh_grounder(recipe: Recipe) -> Grounder:
    """The flow of a recipe, its head with fresh weights."""
    observer, head = build_flow(recipe)
    return Grounder(observer, head, HeadInfo(recipe, observer.vlm))


def method_of(grounder: Grounder) -> MaskMethod:
    """The masks of a grounder's head."""
    return head_method(ObservedFeatures(grounder.observer), grounder.head)


def assemble(
    backbone: Any, *, refiner: Any = None, encoder: Any = SMALL, seed: int = 0, **options: Any
) -> Grounder:
    """A grounder with a random head; `options` are the observer's."""
    torch.manual_seed(seed)
    mask_head = MaskHead(backbone.attention_channels, 4)
    torch.nn.init.normal_(mask_head.unet.conv_seg.weight)
    prompts = TextPrompts(backbone.num_layers, backbone.hidden_size, SMALL_SAM.out_chans)
    sam = small_sam()
    refiner = refiner or SamRefiner(sam)
    observer = Observer(backbone, SamEncoder(sam) if encoder is SMALL else encoder, **options)
    pooling = None
    if observer.ends:
        pooling = LearnedPooling(observer.ends, backbone.attention_channels)
    texts = prompts if refiner.uses_text else None
    head = Head(mask_head, texts, refiner, pooling=pooling).eval()
    return Grounder(observer, head, HeadInfo(Recipe(backbone.spec.name), observer.vlm))


def weighed(grounder: Grounder) -> Grounder:
    """The same with random weights for last tokens, as training leaves them, if it has any."""
    if grounder.head.pooling is not None:
        torch.nn.init.normal_(grounder.head.pooling.toward, std=0.1)
    return grounder


@torch.no_grad()
def flow(grounder: Grounder, samples: Sequence[ObserverInputs]) -> tuple[Grounding, ...]:
    """Both halves, one after the other."""
    return grounder.head(grounder.observer.observe(grounder.observer.collate(samples)))


class KnowingFeatures(FeatureSource):
    """Knows nothing of a sample but its number."""

    device = torch.device("cpu")

    def __init__(self, samples: Sequence[Sample]) -> None:
        self.places = {sample.name: place for place, sample in enumerate(samples)}

    def prepare(self, sample: Sample) -> int:
        return self.places[sample.name]

    def collate(self, prepared: Sequence[int]) -> Any:
        return list(prepared)

    def features(
        self, batch: Any, *, layer_weights: Sequence[float] | None = None
    ) -> tuple[Features, ...]:
        nothing = AttentionMaps(torch.zeros(0, 1, 2, 2), WHOLE_IMAGE)
        rows = torch.zeros(0, dtype=torch.int64)
        return tuple(Features(nothing, torch.tensor(place), rows, None, (0, 0)) for place in batch)


class KnowingMasks:
    """Answers each phrase with the upper `share` of its true rows; every answer is counted."""

    def __init__(self, samples: Sequence[Sample], share: float = 1.0) -> None:
        self.samples, self.share = samples, share
        self.asked: list[str] = []

    def __call__(self, features: Sequence[Features]) -> tuple[Grounding, ...]:
        return tuple(self._answer(self.samples[int(each.hidden)]) for each in features)

    def _answer(self, sample: Sample) -> Grounding:
        self.asked.append(sample.name)
        truth = rle.decode_all([p.mask for p in sample.phrases], sample.image_hw)
        rows = np.arange(truth.shape[1])[None, :, None]
        masks = truth & (rows < truth.shape[1] * self.share)
        logits = torch.from_numpy(masks).float() * 8 - 4
        maps = AttentionMaps(torch.ones(len(masks), 1, 2, 2) / 4, WHOLE_IMAGE)
        return Grounding(logits, MaskLogits(logits), maps)


def knowing_method(samples: Sequence[Sample], share: float = 1.0) -> MaskMethod:
    return MaskMethod("head", KnowingFeatures(samples), KnowingMasks(samples, share))
