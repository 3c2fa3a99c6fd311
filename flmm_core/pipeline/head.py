"""The trained half of the flow: Features -> Grounding."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from flmm_core.pipeline.fit import check_weights
from flmm_core.pipeline.keywords import KeywordSelector
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.pooling import LearnedPooling
from flmm_core.pipeline.presence import Presence
from flmm_core.pipeline.refiners.base import Refiner
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.pipeline.types import AttentionMaps, Features, Grounding, KeywordLogits


class Head(nn.Module):
    """All that is trained; its `state_dict()` is what a head's file holds.

    Without `pooling` the maps are those of `Features`, the mean of a phrase's tokens or their
    maximum. Without `presence` it does not tell whether a phrase names anything in the image;
    without `keywords`, which words of a text to ground.
    """

    def __init__(
        self,
        mask_head: MaskHead,
        text_prompts: TextPrompts | None,
        refiner: Refiner,
        presence: Presence | None = None,
        keywords: KeywordSelector | None = None,
        pooling: LearnedPooling | None = None,
    ) -> None:
        super().__init__()
        if refiner.uses_text != (text_prompts is not None):
            raise ValueError("text prompts are needed where the refiner reads text, and only there")
        self.mask_head = mask_head
        self.text_prompts = text_prompts
        self.refiner = refiner
        self.presence = presence
        self.keywords = keywords
        self.pooling = pooling

    def forward(
        self,
        features: Sequence[Features],
        which: Sequence[Tensor] | None = None,
        refine: Sequence[Tensor] | None = None,
    ) -> tuple[Grounding, ...]:
        """One `Grounding` per sample.

        `which`, (P,) bool per sample, makes masks of some phrases only; `there_logits` are always
        those of all. `refine`, bool per phrase with a mask, refines some masks only: there are
        then fewer refined than coarse ones.
        """
        there: Sequence[Tensor | None] = (None,) * len(features)
        if self.presence is not None:
            there = self.presence(features)
        keywords = [self._keywords(each) for each in features]
        if which is not None:
            features = [each.of_phrases(w) for each, w in zip(features, which, strict=True)]
        maps = self.pooled([sample.maps for sample in features])
        rough = coarse = self.mask_head(maps)
        if refine is not None:
            features = [each.of_phrases(some) for each, some in zip(features, refine, strict=True)]
            rough = tuple(each[some] for each, some in zip(coarse, refine, strict=True))
        prompts = () if self.text_prompts is None else self.text_prompts(features)
        images = [sample.image for sample in features]
        refined = self.refiner(images, rough, prompts, [sample.image_hw for sample in features])
        return tuple(map(Grounding, coarse, refined, maps, there, keywords))

    def pooled(self, maps: Sequence[AttentionMaps]) -> Sequence[AttentionMaps]:
        """The maps that the mask head takes, one per phrase and channel."""
        return maps if self.pooling is None else self.pooling(maps)

    def _keywords(self, features: Features) -> KeywordLogits | None:
        if self.keywords is None or features.caption is None:
            return None
        return KeywordLogits(self.keywords(features.caption.hidden), features.caption.offsets)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.mask_head.parameters()).device

    @property
    def trainable_parameters(self) -> int:
        """How many numbers an optimizer changes."""
        return sum(weight.numel() for weight in self.parameters() if weight.requires_grad)

    def layer_weights(self) -> list[float] | None:
        """L numbers, how the text prompts weigh the VLM's layers, for `Observer.observe`.

        None if no hidden states are read, or those of every layer. While the weights are being
        trained, observe without.
        """
        every = self.presence is not None or self.keywords is not None
        if self.text_prompts is None or every:
            return None
        weights: list[float] = self.text_prompts.layer_weights.detach().float().softmax(0).tolist()
        return weights

    def learning_groups(self) -> Iterator[tuple[str, list[nn.Parameter]]]:
        """The trained parameters by what has a learning rate of its own: "head", "refiner"."""
        own = [*self.mask_head.parameters()]
        for part in (self.text_prompts, self.presence, self.keywords, self.pooling):
            own += [] if part is None else part.parameters()
        for name, group in (("head", own), ("refiner", [*self.refiner.parameters()])):
            if trained := [weight for weight in group if weight.requires_grad]:
                yield name, trained

    def load_weights(self, state: Mapping[str, Tensor]) -> None:
        """Take a `state_dict()` of floats, insisting on all names and shapes.

        Raises:
            WeightsError: A tensor is missing, unexpected or of another shape; nothing is loaded.
        """
        check_weights(
            self.state_dict(),
            state,
            asked="The weights do not fit this head.",
            repair="Use the configuration that the head was trained with.",
        )
        self.load_state_dict(dict(state))
