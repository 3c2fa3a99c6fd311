"""Beside stage 3: hidden states of each phrase -> whether it names anything in the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.pipeline.types import Features


def beside(hidden: Tensor, readout: nn.Linear) -> Tensor:
    """(L, T, D) states -> (T, L·D) float32, normalized layers side by side, where `readout` is."""
    states = hidden.to(readout.weight.device).float()
    return F.layer_norm(states, states.shape[-1:]).transpose(0, 1).flatten(1)


class Presence(nn.Module):
    """A linear readout of the states of each phrase's last token, one per layer.

    There a causal model has read the whole phrase and the image, and has to know whether they
    agree before it can go on. Normalized attention maps do not tell: each sums to 1, so a phrase
    without target attends to whatever is most like it.

    The layers, whose norms differ by orders of magnitude, are normalized. Each has weights of its
    own, since what one direction says in one layer, another says in the next.
    """

    def __init__(self, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.readout = nn.Linear(num_layers * hidden_size, 1)

    def forward(self, features: Sequence[Features]) -> tuple[Tensor, ...]:
        """Per sample, (P,) float32 logits that its phrases name something.

        The hidden states must be those of all L layers, not their sum.
        """
        if not features:
            return ()
        with torch.autocast(self.readout.weight.device.type, enabled=False):
            return self._readout(features)

    def _readout(self, features: Sequence[Features]) -> tuple[Tensor, ...]:
        ends = [each.row_phrase.bincount(minlength=each.phrases).cumsum(0) - 1 for each in features]
        last = [each.hidden[:, end] for each, end in zip(features, ends, strict=True)]
        logits: Tensor = self.readout(beside(torch.cat(last, 1), self.readout))[:, 0].float()
        return tuple(torch.split(logits, [each.phrases for each in features]))
