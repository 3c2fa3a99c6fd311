"""Beside stage 3: hidden states of a text -> which of its tokens belong to a phrase to ground.

The keyword selector of F-LMM (Wu et al., CVPR 2025), which was not released: a linear layer on
the frozen VLM's hidden states, learned from narrations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flmm_core.pipeline.presence import beside


class KeywordSelector(nn.Module):
    """Two linear readouts of each token's state: "begins a phrase" and "is in a phrase".

    With "begins", neighbors stay apart and a phrase needs a beginning: in "left of the star" a
    state tells that "star" is a thing, but not that it was named before; at "the" it does.

    As in `Presence`, layers are normalized, and each has weights of its own.
    """

    def __init__(self, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.readout = nn.Linear(num_layers * hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, 2) float32 logits: that each token begins a phrase, and that it is in one.

        Args:
            hidden: (L, T, D) states of all layers, as in `Trace`.
        """
        with torch.autocast(self.readout.weight.device.type, enabled=False):
            logits: Tensor = self.readout(beside(hidden, self.readout)).float()
            return logits
