"""Beside stage 3: hidden states of each phrase -> prompt tokens for SAM."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn


class PhraseStates(Protocol):
    """What is read of a sample: a `Trace`, or `Features`."""

    @property
    def hidden(self) -> Tensor:
        """(L, T, D)."""
        ...

    @property
    def row_phrase(self) -> Tensor:
        """(T,) int64, ascending."""
        ...

    @property
    def phrases(self) -> int:
        """P."""
        ...


class TextPrompts(nn.Module):
    """Mixes the layers by learned weights, then one linear layer to the width of SAM's prompts.

    Args:
        num_layers: L, layers of the VLM.
        hidden_size: D of the VLM.
        prompt_width: E of SAM.
    """

    def __init__(self, num_layers: int, hidden_size: int, prompt_width: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.ones(num_layers))
        self.proj = nn.Linear(hidden_size, prompt_width)

    def fixed_weights(self) -> list[float]:
        """L numbers, softmax(`layer_weights`): for summing layers while the VLM runs."""
        shares: list[float] = self.layer_weights.detach().float().softmax(0).tolist()
        return shares

    def mix(self, hidden: Tensor) -> Tensor:
        """(L, T, D) hidden states -> (T, D), weighted by softmax(`layer_weights`).

        (1, T, D) are the sum already.
        """
        hidden = hidden.to(self.layer_weights.device).float()
        if len(hidden) == 1:
            return hidden[0]
        return torch.einsum("l,ltd->td", self.layer_weights.softmax(0), hidden)

    def forward(self, traces: Sequence[PhraseStates]) -> tuple[tuple[Tensor, ...], ...]:
        """Per sample and phrase, (T_p, E) float32: a prompt token for each of its tokens."""
        return tuple(
            torch.split(tokens, _tokens_per_phrase(trace))
            for trace, tokens in zip(traces, self._project(traces), strict=True)
        )

    def _project(self, traces: Sequence[PhraseStates]) -> Sequence[Tensor]:
        """(T, E) for each sample."""
        mixed = [self.mix(trace.hidden) for trace in traces]
        if not mixed:
            return []
        return torch.split(self.proj(torch.cat(mixed)).float(), [len(tokens) for tokens in mixed])


def _tokens_per_phrase(trace: PhraseStates) -> list[int]:
    """T_p of each phrase; `row_phrase` is ascending, so a phrase's rows stand together."""
    return trace.row_phrase.bincount(minlength=trace.phrases).tolist()
