"""Beside stage 3: hidden states of each phrase -> whether it names anything in the image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.pipeline.types import Features


class Presence(nn.Module):
    """A linear readout of the state of each phrase's last token.

    There a causal model has read the whole phrase and the image, and has to know whether they
    agree before it can go on. Normalized attention maps do not tell: each sums to 1, so a phrase
    without target attends to whatever is most like it.

    The layers, whose norms differ by orders of magnitude, are normalized and then summed with
    softmax(`layer_weights`).
    """

    def __init__(self, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(num_layers))
        self.readout = nn.Linear(hidden_size, 1)

    def forward(self, features: Sequence[Features]) -> tuple[Tensor, ...]:
        """Per sample, (P,) float32 logits that its phrases name something.

        The hidden states must be those of all L layers, not their sum.
        """
        if not features:
            return ()
        with torch.autocast(self.layer_weights.device.type, enabled=False):
            return self._readout(features)

    def _readout(self, features: Sequence[Features]) -> tuple[Tensor, ...]:
        weights = self.layer_weights.softmax(0)
        ends = [each.row_phrase.bincount(minlength=each.phrases).cumsum(0) - 1 for each in features]
        last = [each.hidden[:, end] for each, end in zip(features, ends, strict=True)]
        states = torch.cat(last, 1).to(weights.device).float()  # (L, P of all samples, D)
        mixed = torch.einsum("l,lpd->pd", weights, F.layer_norm(states, states.shape[-1:]))
        logits: Tensor = self.readout(mixed)[:, 0].float()
        return tuple(torch.split(logits, [each.phrases for each in features]))
