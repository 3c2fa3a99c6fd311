"""The mask decoder of transformers' SAM 2, with padded prompts and without repeated images.

Modules keep their weights and names. transformers' own `forward` copies the maps of the image for
every mask and reads all prompt tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.models.sam2.modeling_sam2 import Sam2Attention, Sam2MaskDecoder

from flmm_core.pipeline.refiners.kernels import attend, padded_prompts, quarter


class PaddedAttention(Sam2Attention):  # type: ignore[misc]
    """Attention between prompt tokens and image; (B, 1, Q or K, E) -> (B, 1, Q, E)."""

    real_keys: Tensor | None = None
    """(B, K) bool, false at padding; None if there is none."""

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, attention_similarity: None = None
    ) -> tuple[Tensor, None]:
        projected = self.q_proj(query), self.k_proj(key), self.v_proj(value)
        q, k, v = (x.flatten(0, 1) for x in projected)
        attended = attend(q, k, v, self.num_attention_heads, self.real_keys)
        return self.o_proj(attended)[:, None], None


def pad(decoder: Sam2MaskDecoder) -> None:
    """Let a decoder's attention leave out padding."""
    for module in decoder.modules():
        if type(module) is Sam2Attention:
            module.__class__ = PaddedAttention


def decode(
    decoder: Sam2MaskDecoder,
    dense: Tensor,
    position: Tensor,
    prompts: Tensor,
    real: Tensor | None,
    details: Sequence[Tensor],
) -> Tensor:
    """All candidates of n masks, (n, K, 4g, 4g): the single one first, then the three.

    Args:
        decoder: After `pad`.
        dense: (n, E, g, g), the image's embedding and the dense prompt; `position` (1, E, g, g).
        prompts: (n, k, E); `real` (n, k) is false at padding, None if there is none.
        details: (n or 1, E/8, 4g, 4g) and (n or 1, E/4, 2g, 2g).
    """
    own = (decoder.obj_score_token, decoder.iou_token, decoder.mask_tokens)
    tokens = torch.cat([each.weight for each in own])  # (2 + K, E)
    tokens = torch.cat([tokens.expand(len(prompts), -1, -1), prompts], dim=1)
    first = 2 + decoder.num_mask_tokens
    with padded_prompts(decoder.transformer, real, own=first):
        states, cells = decoder.transformer(
            point_embeddings=tokens[:, None],
            image_embeddings=dense,
            image_positional_embeddings=position,
            attention_similarity=None,
        )  # (n, 1, 2 + K + k, E), (n, 1, g * g, E)
    upscaled = _upscale(decoder, cells[:, 0].unflatten(1, dense.shape[2:]), details)
    networks = decoder.output_hypernetworks_mlps
    weights = torch.stack([mlp(states[:, 0, 2 + k]) for k, mlp in enumerate(networks)], dim=1)
    masks: Tensor = weights @ upscaled.flatten(1, 2).transpose(1, 2)  # (n, K, 4g * 4g)
    return masks.view(*masks.shape[:2], *upscaled.shape[1:3])


def _upscale(decoder: Any, cells: Tensor, details: Sequence[Tensor]) -> Tensor:
    """(n, g, g, E) -> (n, 4g, 4g, E/8), with the image's details."""
    fine, middle = (kind.permute(0, 2, 3, 1) for kind in details)
    norm = decoder.upscale_layer_norm
    x = quarter(cells, decoder.upscale_conv1) + middle
    x = decoder.activation(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    upscaled: Tensor = decoder.activation(quarter(x, decoder.upscale_conv2) + fine)
    return upscaled
