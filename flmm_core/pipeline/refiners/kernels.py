"""What the mask decoders of SAM and SAM 2 compute alike, faster than their own modules do.

Prompts may be padded: padding has exactly no weight. Transposed convolutions whose windows do not
overlap are matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_KEYS = 16
"""Up to this many prompt tokens, image-to-prompt attention is not fused: see `_attend_to_few`."""


def attend(
    query: Tensor, key: Tensor, value: Tensor, heads: int, real_keys: Tensor | None = None
) -> Tensor:
    """Fused attention between prompt tokens and image.

    Args:
        query: (B, Q, E); `key` and `value` are (B, K, E), all of them projected.
        heads: E is divided among them.
        real_keys: (B, K) bool, false at padding; None if there is none.

    Returns:
        (B, Q, E).
    """
    query, key, value = (
        x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key, value)
    )  # (B, N, Q or K, d)
    mask = None if real_keys is None else real_keys[:, None, None]
    few = key.shape[2] <= FEW_KEYS < query.shape[2]
    attend_to = _attend_to_few if few else F.scaled_dot_product_attention
    attended = attend_to(query, key, value, mask)  # (B, N, Q, d)
    return attended.transpose(1, 2).flatten(2)


def quarters(x: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution with 2 × 2 kernel and stride 2: (..., C) -> (..., 4, D).

    The four parts of each cell are not yet in their places on the grid: upper left and right,
    lower left and right.
    """
    weight = convolution.weight.permute(2, 3, 1, 0)  # (2, 2, D, C)
    assert convolution.bias is not None
    parts = F.linear(x, weight.flatten(0, 2), convolution.bias.repeat(4))
    return parts.view(*x.shape[:-1], 4, -1)


def quarter(x: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """`quarters` in their places: (B, h, w, C) -> (B, 2h, 2w, D)."""
    b, h, w, _ = x.shape
    cells = quarters(x, convolution).view(b, h, w, 2, 2, -1)
    return cells.transpose(2, 3).reshape(b, 2 * h, 2 * w, -1)


@contextmanager
def padded_prompts(transformer: Any, real: Tensor | None, own: int) -> Iterator[None]:
    """Make a decoder's transformer ignore the prompt tokens where `real` (B, K) is false.

    Its attention modules read `real_keys`; `own` tokens of the decoder come before the prompt.
    """
    keys = None if real is None else F.pad(real, (own, 0), value=True)
    over_tokens = [
        attention
        for layer in transformer.layers
        for attention in (layer.self_attn, layer.cross_attn_image_to_token)
    ]
    for attention in over_tokens:
        attention.real_keys = keys
    try:
        yield
    finally:
        for attention in over_tokens:
            attention.real_keys = None


def _attend_to_few(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """`F.scaled_dot_product_attention` from many queries (image) to few keys (prompt).

    The fused kernel vectorizes over keys, of which there are too few. With the queries last,
    this is two to ten times as fast, and the stored weights are small.
    """
    scores = (key * query.shape[-1] ** -0.5) @ query.transpose(-1, -2)  # (B, N, K, Q)
    if mask is not None:
        scores.masked_fill_(~mask.transpose(-1, -2), -torch.inf)
    attended: Tensor = value.transpose(-1, -2) @ scores.softmax(dim=-2)  # (B, N, d, Q)
    return attended.transpose(-1, -2)
