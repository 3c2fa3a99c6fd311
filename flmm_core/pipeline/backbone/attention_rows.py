"""The attention of a few queries, computed anew from queries and keys."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Precision = Literal["fp32", "model"]


def attention_rows(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    places: Tensor,
    scaling: float,
    precision: Precision,
) -> Tensor:
    """Attention of a few queries, (N, t, K) float32, each row summing to 1 over all keys.

    Args:
        query: (N, t, d).
        key: (N_kv, K, d); not repeated for the heads that share it.
        mask: (1 or N, t, K) bool or additive; None is causal.
        places: (t,) of the queries among the keys.
        scaling: Factor of the logits.
        precision: "model" rounds logits and probabilities to the queries' dtype, as eager does.
    """
    heads, count, width = query.shape
    dtype = torch.float32 if precision == "fp32" else query.dtype
    with torch.autocast(query.device.type, enabled=False):
        grouped = query.to(dtype).reshape(len(key), -1, width)  # (N_kv, N / N_kv * t, d)
        # in place from here on: the logits are the largest thing that recording makes
        logits = torch.matmul(grouped, key.to(dtype).transpose(1, 2)).mul_(scaling)
        logits = logits.view(heads, count, -1)  # (N, t, K)
        if mask is None:
            mask = torch.arange(logits.shape[2], device=logits.device) <= places[:, None]
        if mask.dtype == torch.bool:
            # not -inf: a row without any key must not become nan
            logits.masked_fill_(~mask, torch.finfo(dtype).min)
        else:
            logits.add_(mask.to(dtype))
        probs = F.softmax(logits, dim=-1, dtype=torch.float32)
    return probs.to(dtype).float()


def pool_rows(weights: Tensor, probs: Tensor) -> Tensor:
    """Sums of rows with weights (P, t): (N, t, K) -> (N, P, K), float32 under autocast too."""
    with torch.autocast(probs.device.type, enabled=False):
        return torch.matmul(weights, probs)
