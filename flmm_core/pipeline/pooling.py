"""Before stage 3: one map a phrase from the maps of its tokens, weighed as training found best.

The paper averages the attention of a phrase's tokens. But a causal model reads "ring" before
"left of the star": only what ends the phrase can have looked at the ring that is meant.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_core.pipeline.types import AttentionMaps

GAIN = 10.0
"""An optimizer moves a number by about its learning rate a step, and weights have to come as far
as 1: at the rates that suit a U-Net, they would hardly leave the mean."""


class LearnedPooling(nn.Module):
    """Moves each map of a phrase from the mean of its tokens toward its last ones.

    Each attention channel has a weight of its own for each of the last K tokens: heads that find
    a word are best read at that word, others where the phrase ends. At 0, where they start, the
    maps are the mean, bit for bit; with 1 for one of the tokens and 0 for the others they are its
    maps. The weights do not depend on how many tokens a phrase has; in one of a single token
    nothing is left to be weighed.
    """

    def __init__(self, ends: int, channels: int) -> None:
        super().__init__()
        self.toward = nn.Parameter(torch.zeros(ends, channels))

    @property
    def weights(self) -> Tensor:
        """(K, C) of the last tokens, the very last first, by channel."""
        return GAIN * self.toward

    def forward(self, maps: Sequence[AttentionMaps]) -> tuple[AttentionMaps, ...]:
        """Per sample, maps (P, C, h, w) float32 that still sum to 1 over their views.

        Raises:
            ValueError: A sample has no `ends`, or fewer than there are weights for.
        """
        return tuple(map(self._pooled, maps))

    def _pooled(self, sample: AttentionMaps) -> AttentionMaps:
        count = 0 if sample.ends is None else sample.ends.shape[1]
        if sample.ends is None or count < len(self.toward):
            raise ValueError(f"the maps have {count} ends, the weights are for {len(self.toward)}")
        mean = sample.maps.to(self.toward.device).float()
        pooled = mean
        for place, weights in enumerate(self.weights):
            end = sample.ends[:, place].to(mean)  # (P, C, h, w)
            pooled = pooled + weights[:, None, None] * (end - mean)
        return AttentionMaps(pooled, sample.image_box)
