"""segment-anything's modules with fused attention, padded prompts and a faster memory layout.

Modules keep their weights and names; only their `forward` is replaced. Fused attention does not
store the attention weights.
"""

from __future__ import annotations

from typing import Any

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention as EncoderAttention
from segment_anything.modeling.image_encoder import get_rel_pos
from segment_anything.modeling.transformer import Attention as DecoderAttention
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.pipeline.refiners.kernels import attend, quarters


class FusedEncoderAttention(EncoderAttention):  # type: ignore[misc]
    """Attention between the patches of an image or a window.

    The relative position bias is materialized, as the fused kernel takes it only as a tensor.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, C) -> (B, h, w, C)."""
        b, h, w, c = x.shape
        qkv = self.qkv(x).view(b, h * w, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)  # (B, N, h * w, d)
        bias = self._bias(q, h, w) if self.use_rel_pos else None
        attended = F.scaled_dot_product_attention(q, k, v, bias, scale=self.scale)
        out: Tensor = self.proj(attended.transpose(1, 2).reshape(b, h, w, c))
        return out

    def _bias(self, q: Tensor, h: int, w: int) -> Tensor:
        """(B, N, h * w, h * w) relative position bias."""
        rows = get_rel_pos(h, h, self.rel_pos_h)  # (h, h, d)
        columns = get_rel_pos(w, w, self.rel_pos_w)  # (w, w, d)
        grid = q.unflatten(2, (h, w))  # (B, N, h, w, d)
        along_h = torch.einsum("bnhwc,hkc->bnhwk", grid, rows)
        along_w = torch.einsum("bnhwc,wkc->bnhwk", grid, columns)
        bias = along_h[..., :, None] + along_w[..., None, :]  # (B, N, h, w, h, w)
        return bias.flatten(4).flatten(2, 3)


class FusedDecoderAttention(DecoderAttention):  # type: ignore[misc]
    """Attention between prompt tokens and image."""

    real_keys: Tensor | None = None
    """(B, K) bool, false at padding; None if there is none."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, Q, E), (B, K, E), (B, K, E) -> (B, Q, E)."""
        projected = self.q_proj(q), self.k_proj(k), self.v_proj(v)
        out: Tensor = self.out_proj(attend(*projected, self.num_heads, self.real_keys))
        return out


class LastChannelTransformer(TwoWayTransformer):  # type: ignore[misc]
    """The mask decoder's transformer in channels-last layout.

    It reads image and positions by cell, many times. Positions are the same for all masks: one
    copy is broadcast.
    """

    def forward(
        self, image_embedding: Tensor, image_pe: Tensor, point_embedding: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(B, C, h, w) twice, (B, K, C) -> (B, K, C), (B, h * w, C)."""
        by_cell = (
            x.contiguous(memory_format=torch.channels_last) for x in (image_embedding, image_pe[:1])
        )
        tokens, cells = super().forward(*by_cell, point_embedding)
        return tokens, cells


class CellwiseMaskDecoder(MaskDecoder):  # type: ignore[misc]
    """The mask decoder, upscaling each cell of the image by itself.

    Both steps of its upscaling turn every cell into 2 × 2 cells, by one matrix product each. All
    that follows is done for every cell alone, so only the masks are put together in the end, which
    have fewer channels.
    """

    def predict_masks(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """As segment-anything's: (B, K, 4h, 4w) masks and (B, K) IoUs that it predicts.

        Args:
            image_embeddings: (1, C, h, w) or what is broadcast to it, of one image.
            image_pe: (1, C, h, w).
            sparse_prompt_embeddings: (B, k, C); `dense_prompt_embeddings` is (B, C, h, w).
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])  # (1 + K, C)
        prompts = sparse_prompt_embeddings
        tokens = torch.cat([own.expand(len(prompts), -1, -1), prompts], dim=1)
        image = image_embeddings + dense_prompt_embeddings
        states, cells = self.transformer(image, image_pe, tokens)  # (B, 1 + K + k, C), (B, h*w, C)
        networks = self.output_hypernetworks_mlps
        weights = torch.stack([mlp(states[:, 1 + k]) for k, mlp in enumerate(networks)], dim=1)
        parts = upscaled(cells, self.output_upscaling)  # (B, h*w, 4, 4, C / 8)
        masks = weights @ parts.flatten(1, 3).transpose(1, 2)  # (B, K, h*w * 16)
        masks = masks.unflatten(2, (*image.shape[2:], 2, 2, 2, 2))
        masks = masks.permute(0, 1, 2, 4, 6, 3, 5, 7).flatten(5).flatten(2, 4)
        return masks, self.iou_prediction_head(states[:, 0])


def upscaled(cells: Tensor, upscaling: nn.Sequential) -> Tensor:
    """The mask decoder's upscaling: (B, cells, C) -> (B, cells, 4, 4, C / 8), see `quarters`."""
    parts: Any = upscaling  # modules of known kinds in a known order
    first, norm, activation, second, last = parts
    x = quarters(cells, first)
    x = activation(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
    return last(quarters(x, second))  # type: ignore[no-any-return]


def fuse(part: nn.Module) -> None:
    """Replace the `forward` of segment-anything's modules in `part`."""
    fused: dict[type[nn.Module], type[nn.Module]] = {
        EncoderAttention: FusedEncoderAttention,
        DecoderAttention: FusedDecoderAttention,
    }
    for module in part.modules():
        if type(module) in fused:
            module.__class__ = fused[type(module)]
        elif type(module) is MaskDecoder:
            module.transformer.__class__ = LastChannelTransformer
            module.__class__ = CellwiseMaskDecoder
