"""The eager attention that a family's own file in transformers has: what its layers mean."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

Attend = Callable[..., tuple[Tensor, Tensor]]
NAME = "eager_attention_forward"
"""What transformers calls it in every file."""


def own_eager(module: nn.Module) -> Attend | None:
    """The eager attention for a layer's class, which takes masks as sdpa does; None without.

    It returns (B, S, N, d) and the weights (B, N, S, K).
    """
    found = getattr(sys.modules.get(type(module).__module__), NAME, None)
    return None if found is None else partial(_attend, found)


def _attend(
    eager: Attend,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    count, keys = query.shape[2], key.shape[2]
    if mask is None and kwargs["is_causal"]:  # without a mask, all keys of one token are earlier
        seen = torch.ones(count, keys, dtype=torch.bool, device=query.device)
        mask = seen.tril(0 if count > 1 else keys - 1)
    mask = None if mask is None else mask[..., :keys]
    if mask is not None and mask.dtype == torch.bool:
        lowest = torch.finfo(query.dtype).min
        mask = torch.zeros_like(mask, dtype=query.dtype).masked_fill_(~mask, lowest)
    return eager(module, query, key, value, mask, **kwargs)


def is_causal(module: nn.Module, given: Mapping[str, Any]) -> bool:
    """Whether a layer's attention without a mask is causal, as sdpa decides it."""
    said = given.get("is_causal")
    return bool(getattr(module, "is_causal", True) if said is None else said)
