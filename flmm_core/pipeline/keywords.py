"""Beside stage 3: hidden states of a text -> which of its tokens belong to a phrase to ground.

The keyword selector of F-LMM (Wu et al., CVPR 2025), which was not released: a linear layer on
the frozen VLM's hidden states, learned from narrations.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class KeywordSelector(nn.Module):
    """Two linear readouts of each token's state: "begins a phrase" and "is in a phrase".

    With "begins", neighbors stay apart and a phrase needs a beginning: in "left of the star" a
    state tells that "star" is a thing, but not that it was named before; at "the" it does.

    The layers, whose norms differ by orders of magnitude, are normalized and then summed with
    softmax(`layer_weights`).
    """

    def __init__(self, num_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(num_layers))
        self.readout = nn.Linear(hidden_size, 2)

    def forward(self, hidden: Tensor) -> Tensor:
        """(T, 2) float32 logits: that each token begins a phrase, and that it is in one.

        Args:
            hidden: (L, T, D) states of all layers, as in `Trace`.
        """
        with torch.autocast(self.layer_weights.device.type, enabled=False):
            states = hidden.to(self.layer_weights.device).float()
            weights = self.layer_weights.softmax(0)
            mixed = torch.einsum("l,ltd->td", weights, F.layer_norm(states, states.shape[-1:]))
            logits: Tensor = self.readout(mixed).float()
            return logits
