"""Beside stage 3: hidden states of each phrase -> text tokens for the refiner."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_core.pipeline.types import Features


class TextPrompts(nn.Module):
    """A learned weighted sum of the L layers, then a linear layer from D to E."""

    def __init__(self, num_layers: int, hidden_size: int, prompt_width: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.ones(num_layers))
        self.proj = nn.Linear(hidden_size, prompt_width)

    def mix(self, hidden: Tensor) -> Tensor:
        """(L, T, D) -> (T, D), weighted by softmax(`layer_weights`); (1, T, D) is the sum."""
        hidden = hidden.to(self.layer_weights.device).float()
        if len(hidden) == 1:
            return hidden[0]
        return torch.einsum("l,ltd->td", self.layer_weights.softmax(0), hidden)

    def forward(self, features: Sequence[Features]) -> tuple[tuple[Tensor, ...], ...]:
        """Per sample and phrase, (T_p, E) float32: one prompt token per token of the phrase."""
        if not features:
            return ()
        mixed = [self.mix(sample.hidden) for sample in features]
        tokens = self.proj(torch.cat(mixed)).float()  # (T of all samples, E)
        # rows of a phrase are adjacent: `row_phrase` is ascending
        lengths = [f.row_phrase.bincount(minlength=f.phrases).tolist() for f in features]
        per_sample = tokens.split([len(rows) for rows in mixed])
        return tuple(rows.split(each) for rows, each in zip(per_sample, lengths, strict=True))
