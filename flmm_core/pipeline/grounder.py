"""The four stages in one forward; the only file that knows them all."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from flmm_core.errors import UsageError, WeightsError
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.recorder import Pool
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.refiners.sam import NoRefiner, SamRefiner
from flmm_core.pipeline.result import Result, ResultBuilder
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.pipeline.types import (
    AttentionMaps,
    BackboneBatch,
    BackboneInputs,
    EncodedImage,
    Features,
    Grounding,
)
from flmm_core.segment import Segment

FROZEN = "refiner.image_encoder."
"""Weights under this name are SAM's own and stay out of a head's file."""

PIXELS_AT_ONCE = 100_000_000
"""`ground` refines about this many mask pixels in one forward."""


@dataclass(frozen=True)
class GrounderInputs:
    """One sample, ready for the flow: CPU tensors.

    Attributes:
        backbone: For the VLM.
        image: (3, h, w) uint8 for the refiner, or None where it needs none.
        image_hw: Height and width of the image in pixels.
    """

    backbone: BackboneInputs
    picture: Tensor | None
    image_hw: tuple[int, int]


@dataclass(frozen=True)
class GrounderBatch:
    """Samples that go through the flow together; attributes as in `GrounderInputs`."""

    backbone: BackboneBatch
    pictures: tuple[Tensor | EncodedImage | None, ...]
    image_hw: tuple[tuple[int, int], ...]

    def __len__(self) -> int:
        return len(self.image_hw)

    def pin_memory(self) -> GrounderBatch:
        """The same with page-locked tensors, for a DataLoader.

        An image that several samples share stays one tensor: the refiner encodes it once.
        """
        distinct = {id(picture): picture for picture in self.pictures if picture is not None}
        pinned = {key: picture.pin_memory() for key, picture in distinct.items()}
        return replace(
            self,
            backbone=self.backbone.pin_memory(),
            pictures=tuple(pinned.get(id(picture)) for picture in self.pictures),
        )


class Grounder(nn.Module):
    """Grounds phrases with a frozen VLM: backbone, mask head, text prompts, refiner.

    The backbone is a plain object and no submodule: its weights are in neither `parameters()`
    nor `state_dict()`.

    Args:
        backbone: The frozen VLM.
        mask_head: Stage 3.
        text_prompts: Beside stage 3; None if the refiner reads no text.
        refiner: Stage 4.
        pool: How the attention of a phrase's tokens becomes one, "mean" or "max".
        channels: Which attention channels the mask head takes, in this order; empty means all.

    Attributes:
        one_by_one: Whether the frozen parts run sample by sample. What they say of a sample then
            does not depend on its companions, whose padding changes the last bits of sums.
        confidence: Evidence for masks to the probability that they are right, (P,) both.

    Raises:
        WeightsError: The head was made for another VLM.
    """

    name: ClassVar[str] = "head"
    """What results call masks that are made in this way (`flmm_core.evaluation.baselines`)."""
    confidence: Callable[[Any], Any] | None

    def __init__(
        self,
        backbone: Backbone,
        mask_head: MaskHead,
        text_prompts: TextPrompts | None,
        refiner: SamRefiner | NoRefiner,
        *,
        pool: Pool = "mean",
        channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if refiner.uses_text and text_prompts is None:
            raise ValueError("the refiner reads text prompts, but there are none")
        self.backbone = backbone
        self.mask_head = mask_head
        self.text_prompts = text_prompts if refiner.uses_text else None
        self.refiner = refiner
        self.pool = pool
        self.channels = tuple(channels)
        self.one_by_one = False
        self.confidence = None
        self._check_fit()

    def _check_fit(self) -> None:
        ours = {"attention channels": self.mask_head.in_channels}
        theirs = {"attention channels": self.backbone.attention_channels}
        if self.channels:
            # The head sees a choice of them, which must be there.
            ours["attention channels"] = max(theirs["attention channels"], max(self.channels) + 1)
        if self.text_prompts is not None:
            ours["layers"] = len(self.text_prompts.layer_weights)
            theirs["layers"] = self.backbone.num_layers
            ours["hidden size"] = self.text_prompts.proj.in_features
            theirs["hidden size"] = self.backbone.hidden_size
        if ours != theirs:
            raise WeightsError(
                f"The head does not fit the model '{self.backbone.model}'.",
                found="; ".join(
                    f"{fact}: head {ours[fact]}, model {theirs[fact]}"
                    for fact in ours
                    if ours[fact] != theirs[fact]
                )
                + ".",
                repair="Use the model that the head was trained with, or train a new head.",
            )

    def prepare(
        self,
        image: Image.Image,
        segments: Sequence[Segment],
        *,
        name: str = "",
        like: GrounderInputs | None = None,
    ) -> GrounderInputs:
        """One sample, ready for the flow; needs no weights and runs in DataLoader workers.

        Args:
            image: The image.
            segments: The caption in pieces.
            name: Names the sample in messages.
            like: A sample of the same image and prompt, which is then read and encoded once
                for both.
        """
        known = None if like is None else like.backbone
        return GrounderInputs(
            backbone=self.backbone.prepare(image, segments, name=name, like=known),
            picture=self.refiner.prepare(image) if like is None else like.picture,
            image_hw=(image.height, image.width),
        )

    def collate(self, samples: Sequence[GrounderInputs]) -> GrounderBatch:
        """At least one sample -> one batch."""
        return GrounderBatch(
            backbone=self.backbone.collate([sample.backbone for sample in samples]),
            pictures=tuple(sample.picture for sample in samples),
            image_hw=tuple(sample.image_hw for sample in samples),
        )

    def forward(self, batch: GrounderBatch) -> tuple[Grounding, ...]:
        """One `Grounding` a sample."""
        return self.decide(self.observe(batch, layer_weights=self._layer_weights()))

    @torch.no_grad()
    def observe(
        self, batch: GrounderBatch, *, layer_weights: Sequence[float] | None = None
    ) -> tuple[Features, ...]:
        """The frozen half of the flow: what the VLM and SAM's image encoder say of each sample.

        Args:
            batch: From `collate`.
            layer_weights: See `Backbone.trace`.
        """
        if self.one_by_one and len(batch) > 1:
            look = partial(self.observe, layer_weights=layer_weights)
            parts = zip(batch.backbone.samples, batch.pictures, batch.image_hw, strict=True)
            singles = (GrounderBatch(self.backbone.collate([x]), (y,), (z,)) for x, y, z in parts)
            return tuple(features for single in singles for features in look(single))
        traces = self.backbone.trace(batch.backbone, pool=self.pool, layer_weights=layer_weights)
        maps = [self._chosen(attention_maps(trace)) for trace in traces]
        prepared: Sequence[Any] = batch.pictures  # None only where the refiner needs none
        pictures = self.refiner.read(prepared)
        return tuple(
            Features(sample_maps, trace.hidden, trace.row_phrase, picture, trace.image_hw)
            for sample_maps, trace, picture in zip(maps, traces, pictures, strict=True)
        )

    def decide(self, features: Sequence[Features]) -> tuple[Grounding, ...]:
        """The trained half of the flow: from what was observed to one `Grounding` a sample."""
        maps = [each.maps for each in features]
        coarse = self.mask_head(maps)
        prompts = () if self.text_prompts is None else self.text_prompts(features)
        pictures, sizes = zip(*((x.picture, x.image_hw) for x in features), strict=True)
        logits = self.refiner(pictures, coarse, prompts, sizes)
        return tuple(
            Grounding(coarse_logits=coarse_logits, logits=refined_logits, maps=sample_maps)
            for coarse_logits, refined_logits, sample_maps in zip(coarse, logits, maps, strict=True)
        )

    @property
    def device(self) -> torch.device:
        """Where the head's weights are."""
        return next(self.mask_head.parameters()).device

    def _chosen(self, maps: AttentionMaps) -> AttentionMaps:
        if not self.channels:
            return maps
        return AttentionMaps(maps.maps[:, list(self.channels)], maps.image_box)  # (P, K, h, w)

    def _layer_weights(self) -> list[float] | None:
        """What the VLM's layers count in the text prompts, unless that is being trained."""
        if self.text_prompts is None or torch.is_grad_enabled():
            return None
        return self.text_prompts.fixed_weights()

    @torch.no_grad()
    def ground(
        self,
        image: Image.Image,
        phrases: Sequence[str],
        prompt: str | None = None,
        *,
        together: bool = False,
        batch_size: int = 8,
    ) -> Result:
        """Masks of phrases in an image.

        Args:
            image: The image.
            phrases: What to look for, for example `["red ring", "the star"]`.
            prompt: What the user says beside the image; by default the backbone's own.
            together: Read all phrases in one caption, each seeing those before it, instead of
                each alone.
            batch_size: Most phrases that go through the flow at a time, unless `together`.

        Raises:
            UsageError: A phrase is empty, or there is no image.
        """
        phrases = _checked_phrases(image, phrases)
        reader = self
        if prompt is not None:
            # Only for `prepare`, which reads the prompt; the shared backbone stays as it is.
            reader = copy.copy(self)
            reader.backbone = copy.copy(self.backbone)
            reader.backbone.prompt = prompt
        captions = [[Segment(phrase, 0), Segment(".")] for phrase in phrases]
        if together and phrases:
            pairs = [(Segment(phrase, i), Segment(".")) for i, phrase in enumerate(phrases)]
            captions = [[piece for pair in pairs for piece in pair]]

        first: GrounderInputs | None = None
        builder = ResultBuilder(image, phrases, self.confidence)
        at_once = max(1, min(batch_size, PIXELS_AT_ONCE // (image.height * image.width)))
        for start in range(0, len(captions), at_once):
            samples = []
            for caption in captions[start : start + at_once]:
                samples.append(reader.prepare(image, caption, like=first))
                first = first or samples[0]
            for grounding in self(self.collate(samples)):
                builder.add(grounding)
        return builder.build()

    def trainable_state(self) -> dict[str, Tensor]:
        """What a head's file holds: everything but the frozen VLM and SAM's image encoder."""
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if not name.startswith(FROZEN)
        }

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Take what `trainable_state` gave, insisting on all names and shapes.

        Raises:
            WeightsError: A tensor is missing, unexpected or of another shape; nothing is loaded.
        """
        own = self.trainable_state()
        problems = [f"missing {name}" for name in own if name not in state]
        problems += [f"unexpected {name}" for name in state if name not in own]
        problems += [
            f"{name} is {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ]
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise WeightsError(
                "The head's weights do not fit this head.",
                found=f"{len(problems)} differences: {'; '.join(problems[:3])}{more}.",
                repair="Use the configuration that the head was trained with.",
            )
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])


def _checked_phrases(image: Image.Image, phrases: Sequence[str]) -> list[str]:
    if not isinstance(image, Image.Image):
        raise UsageError(
            "There is no image to ground in.",
            found=f"Found {type(image).__name__}; a PIL image was expected.",
            repair="Read it with flmm_core.data.images.read_image.",
        )
    listed = [phrases] if isinstance(phrases, str) else list(phrases)
    for number, phrase in enumerate(listed):
        if not isinstance(phrase, str) or not phrase.strip():
            raise UsageError(
                f"Phrase {number} is empty.",
                found=f"Found {phrase!r}.",
                repair="Give it at least one word.",
            )
    return [phrase.strip() for phrase in listed]
