"""Rows of attention, computed again from the queries and keys that a layer passes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_core.errors import RunError, UsageError

UNSUPPORTED = {
    "s_aux": "attention sinks",
    "sinks": "attention sinks",
    "position_bias": "a learned position bias",
    "indices": "sparse attention",
    "block_indices": "sparse attention",
    "cache": "a paged cache",
}
"""What layers may give to their attention that changes its rows, and is not computed here."""

KNOWN = {
    *("scaling", "softcap", "is_causal", "sliding_window", "dropout", "position_ids"),
    *("cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"),
}
"""What is computed here, is in the mask already, or is meant for kernels that are not used."""


class Scores(NamedTuple):
    """What a layer makes of the products of its queries and keys, before the softmax.

    Attributes:
        scaling: They are multiplied by it.
        softcap: Then, with a number c, they become c * tanh(x / c).
    """

    scaling: float
    softcap: float | None = None

    @classmethod
    def of(cls, query: Tensor, given: Mapping[str, Any]) -> Self:
        """As a layer says it: `given` is what it passes to its attention beside tensors."""
        scaling = given.get("scaling")
        return cls(query.shape[-1] ** -0.5 if scaling is None else scaling, given.get("softcap"))


def check_attention(
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    given: Mapping[str, Any],
    start: int,
    count: int,
) -> None:
    """Refuse attention that cannot be computed again exactly.

    Args:
        query: (B, N, q, d), whose first is at position `start`.
        key: (B, N_kv, K, d).
        mask: As the layer passes it.
        given: What else the layer passes to its attention.
        count: How many sequences are recorded.

    Raises:
        UsageError: The architecture is not supported.
        RunError: Other sequences run than are recorded, or the KV cache has dropped keys.
    """
    for name, what in UNSUPPORTED.items():
        if given.get(name) is not None:
            raise unsupported(what)
    for name, value in given.items():
        if isinstance(value, Tensor | float) and name not in KNOWN:
            raise unsupported(f"an attention with '{name}', which is not known")
    if mask is None and query.shape[2] > 1 and given.get("is_causal") is False:
        raise unsupported("attention to later tokens")
    if len(query) != count:
        raise RunError(
            f"The attention cannot be recorded: rows were given for {count} samples.",
            found=f"The model ran {len(query)} sequences.",
            repair="Give rows for each sequence; beam search is not supported.",
        )
    keys = start + query.shape[2]
    if key.shape[2] < keys:
        raise RunError(
            "The attention cannot be recorded: the KV cache has dropped keys.",
            found=f"{key.shape[2]} of {keys} are left (a sliding window).",
            repair="Use a cache that keeps all keys, or shorter sequences.",
        )


def unsupported(what: str) -> UsageError:
    return UsageError(
        "The attention of this model cannot be recorded.",
        found=f"It has {what}.",
        repair="Choose a model with ordinary causal attention.",
    )


def attention_rows(
    query: Tensor, key: Tensor, mask: Tensor | None, positions: Tensor, scores: Scores
) -> Tensor:
    """Attention of a few queries, (N, t, K) float32; each row sums to 1 over all keys.

    Args:
        query: (N, t, d), at `positions` (t,) among the keys.
        key: (N_kv, K, d); not repeated for the heads that share it.
        mask: (1 or N, t, K) bool or additive; None is causal.
        scores: The layer's.
    """
    heads, count, width = query.shape
    with torch.autocast(query.device.type, enabled=False):
        grouped = query.float().reshape(len(key), -1, width)  # (N_kv, N / N_kv * t, d)
        # in place from here on: the logits are the largest tensor that recording allocates
        logits = torch.matmul(grouped, key.float().transpose(1, 2)).mul_(scores.scaling)
        logits = logits.view(heads, count, -1)  # (N, t, K)
        if scores.softcap is not None:
            logits.div_(scores.softcap).tanh_().mul_(scores.softcap)
        if mask is None:
            mask = torch.arange(logits.shape[2], device=logits.device) <= positions[:, None]
        if mask.dtype == torch.bool:
            # not -inf: a row without any key must not become nan
            logits.masked_fill_(~mask, torch.finfo(torch.float32).min)
        else:
            logits.add_(mask.float())
        return F.softmax(logits, dim=-1)


def pooling_weights(groups: Tensor, phrases: int, ends: int = 0) -> Tensor:
    """(P * (1 + K), T) float32: what each row counts in the mean of each phrase, then what in
    each phrase's last token, in its last but one, ... up to K `ends`.

    In place of a token that a phrase is too short for, its mean is repeated.

    Args:
        groups: (T,) the phrase 0..P-1 of each row; the rows of a phrase are in order.
        phrases: P, each with at least one row.
        ends: K.
    """
    own = groups == torch.arange(phrases)[:, None]  # (P, T)
    mean = own / own.sum(1, keepdim=True)
    behind = own.flip(1).cumsum(1).flip(1)  # 1 at the last row of each phrase, 2 before it, ...
    parts = [mean]
    for place in range(1, ends + 1):
        one = (own & (behind == place)).float()
        parts.append(torch.where(one.any(1, keepdim=True), one, mean))
    return torch.cat(parts)


def split_ends(attention: Tensor, phrases: int) -> tuple[Tensor, Tensor | None]:
    """(L, N, P * (1 + K), M) by `pooling_weights` -> (L, N, P, M) and the K ends.

    These are (L, N, P, K, M), or None if K is 0.
    """
    mean, rest = attention[:, :, :phrases], attention[:, :, phrases:]
    if not rest.shape[2]:
        return mean, None
    return mean, rest.unflatten(2, (-1, phrases)).transpose(2, 3)


def pool_rows(weights: Tensor, probs: Tensor, phrases: int) -> Tensor:
    """Sums of rows with weights (P * (1 + K), t): (N, t, K) -> (N, P * (1 + K), K).

    Float32, under autocast too. The P `phrases` are one product, and so is each of the K ends: how
    a product is rounded depends on its size, and the means must be those that are pooled alone.
    """
    with torch.autocast(probs.device.type, enabled=False):
        parts = [torch.matmul(some, probs) for some in weights.split(max(1, phrases))]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
