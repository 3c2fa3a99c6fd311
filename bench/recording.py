"""What recording costs beside the VLM's own forward: time and memory."""

from __future__ import annotations

from typing import Any

import torch

from bench import original_way, real_models
from bench.cases import BARE, ORIGINAL, OURS, CaseSpec
from bench.inputs import (
    caption,
    medium_backbone,
    picture,
    real_backbone,
    sequence,
    tiny_backbone,
)
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.types import BackboneInputs, Trace

WAYS = (BARE, OURS, ORIGINAL)


class RecordingCase:
    """One image with its phrases through the VLM.

    `bare` is `vlm.model` under sdpa without anything recorded and without its language-model
    head; `ours` is `Backbone.trace`; `original-way` is `bench.original_way.trace`.
    """

    def __init__(self, spec: CaseSpec) -> None:
        self.spec = spec
        self.backbone, self.sample = backbone_and_sample(spec)
        self.batch = self.backbone.collate([self.sample])
        self.facts = facts_of(self.backbone, self.sample)
        self._warm: set[str] = set()

    def prepare(self, way: str) -> None:
        """Switch the attention; the first time also run a short sequence, which loads kernels."""
        how = "eager" if way == ORIGINAL else "sdpa"
        if self.backbone.vlm.config._attn_implementation != how:
            self.backbone.vlm.set_attn_implementation(how)
        if way not in self._warm:
            self._warm.add(way)
            short = self.backbone.prepare(picture(64, 64), caption(2))
            self._work(way, short)

    def run(self, way: str) -> dict[str, Any]:
        """One forward."""
        traced = self._work(way, self.sample)
        facts = dict(self.facts)
        if traced is not None:
            kept = (traced.attention, traced.hidden)
            facts["returned_bytes"] = sum(value.numel() * value.element_size() for value in kept)
        return facts

    @torch.no_grad()
    def _work(self, way: str, sample: BackboneInputs) -> Trace | None:
        if way == ORIGINAL:
            return original_way.trace(self.backbone, sample)
        batch = self.batch if sample is self.sample else self.backbone.collate([sample])
        if way == OURS:
            return self.backbone.trace(batch)[0]
        tensors = self.backbone._to_vlm(batch.tensors)
        self.backbone.vlm.model(**tensors, use_cache=False)
        return None


def backbone_and_sample(spec: CaseSpec) -> tuple[Backbone, BackboneInputs]:
    """The model of a case, and one sequence for it."""
    dtype = getattr(torch, spec.dtype)
    if spec.model == "medium":
        backbone = medium_backbone(spec.tokens, dtype, spec.device)
        return backbone, sequence(backbone, spec.tokens, spec.phrases)
    if family := real_models.FAMILIES.get(spec.model):
        backbone = real_backbone(spec.model, dtype, spec.device)
        cell = real_models.CELLS[family]
        if not spec.tokens:  # four tiles
            return backbone, backbone.prepare(picture(672, 672), caption(spec.phrases))
        return backbone, sequence(backbone, spec.tokens, spec.phrases, cell)
    backbone = tiny_backbone(spec.model, dtype, spec.device)
    return backbone, backbone.prepare(picture(160, 120), caption(spec.phrases))


def facts_of(backbone: Backbone, sample: BackboneInputs) -> dict[str, int]:
    """The sizes that `bench.arithmetic` reads."""
    text = backbone.text_config
    decoder, vision = backbone.vlm.get_decoder(), backbone.vlm.get_encoder("image")
    head_size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    pixels = sample.tensors["pixel_values"]
    # flattened patches, or tiles of (3, t, t)
    side = getattr(backbone.config.vision_config, "patch_size", 1)
    patches = len(pixels) if pixels.ndim == 2 else pixels[..., 0, :, :].numel() // side**2
    return {
        "tokens": len(sample.tensors["input_ids"]),
        "image_tokens": sum(view.token_index.numel() for view in sample.views),
        "rows": sum(len(rows) for rows in sample.phrase_rows),
        "phrases": len(sample.phrase_rows),
        "patches": patches,
        "layers": backbone.num_layers,
        "heads": backbone.num_heads,
        "key_heads": text.num_key_value_heads,
        "head_size": head_size,
        "hidden_size": backbone.hidden_size,
        # embeddings are looked up, not multiplied
        "decoder_parameters": sum(x.numel() for x in decoder.layers.parameters()),
        "vision_parameters": sum(x.numel() for x in vision.parameters()),
    }


def specs(size: str) -> list[CaseSpec]:
    """The cases of a size: "tiny" or "medium"."""
    if size == "tiny":
        return [CaseSpec("recording", name) for name in ("qwen", "deepseek_vl", "llava_next")]
    return [
        CaseSpec("recording", "medium", tokens, dtype)
        for dtype in ("float32", "bfloat16")
        for tokens in (700, 1500, 3000)
    ]
