"""Models with random weights, and images and phrases that make sequences of a given length."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from bench import real_models
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.refiners.sam_model import (
    OFFICIAL,
    SamParts,
    _build_prompt_parts,
    _build_timm_encoder,
)
from flmm_core.pipeline.types import BackboneInputs
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment
from recipes.twins import qwen_parts

CELL = 16
"""Pixels a side that one image token of the medium model stands for."""

AROUND = 100
"""Tokens of a sequence that are not the image's: prompt, phrases, filler."""

PHRASES = (
    "the small red ring",
    "the large blue star",
    "the left green circle",
    "the right yellow cross",
    "the upper red star",
    "the lower blue ring",
    "the small green cross",
    "the large yellow circle",
)


def grid_for(tokens: int) -> tuple[int, int]:
    """(h, w) cells of an image for a sequence of so many tokens, as square as can be."""
    cells = max(4, tokens - AROUND)
    h = math.isqrt(cells)
    return h, cells // h


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def discs(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(P, H, W) bool, one disc a mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:height, :width]
    side = min(height, width)
    masks = []
    for _ in range(count):
        radius = rng.uniform(0.1, 0.3) * side
        y, x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
        masks.append((rows - y) ** 2 + (columns - x) ** 2 < radius**2)
    return torch.from_numpy(np.stack(masks))


def build_from_config(config: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A VLM with random weights, made where and in the type in which it is needed."""
    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            # from_config shares the config object with the model it makes
            vlm = transformers.AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    finally:
        torch.set_default_dtype(before)
    return vlm.to(device, dtype)


def medium_parts(tokens: int) -> tuple[Any, Any]:
    """(config, processor) of a Qwen2.5-VL: hidden 1024, 12 layers, 16 heads of 64, 2 for keys.

    Its vision tower is small and works in windows only, so that it hides nothing of what the
    language model costs.
    """
    h, w = grid_for(tokens)
    config, processor = qwen_parts()
    pixels = h * w * CELL**2
    processor.image_processor.size = {"shortest_edge": CELL**2, "longest_edge": pixels}
    text, vision = config.text_config, config.vision_config
    text.hidden_size, text.intermediate_size = 1024, 2816
    text.num_hidden_layers, text.layer_types = 12, ["full_attention"] * 12
    text.num_attention_heads, text.num_key_value_heads = 16, 2
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [8, 12, 12]}
    text.max_position_embeddings = 8192
    vision.depth, vision.window_size, vision.fullatt_block_indexes = 2, 64, []
    vision.out_hidden_size = text.hidden_size
    return config, processor


def medium_backbone(tokens: int, dtype: torch.dtype, device: str = "cpu") -> Backbone:
    """The medium model behind the Qwen plugin."""
    config, processor = medium_parts(tokens)
    spec = load_backbones().get("qwen")
    vlm = build_from_config(config, dtype, device)
    return load_class(spec)(spec, vlm, processor, model="medium")


def real_backbone(name: str, dtype: torch.dtype, device: str) -> Backbone:
    """A model of a real size behind its family's plugin."""
    config, processor = real_models.parts(name)
    spec = load_backbones().get(real_models.FAMILIES[name])
    vlm = build_from_config(config, dtype, device)
    return load_class(spec)(spec, vlm, processor, model=name)


def tiny_backbone(family: str, dtype: torch.dtype, device: str = "cpu") -> Backbone:
    """A shipped twin."""
    spec = load_backbones().get(family)
    return load_class(spec).load(spec, dtype=dtype, device=device)


def caption(phrases: int, filler: int = 0) -> list[Segment]:
    """Phrases as training has them, each followed by a full stop; then words of no phrase."""
    segments = []
    for place in range(phrases):
        segments += [Segment(PHRASES[place % len(PHRASES)], place), Segment(".")]
    return [*segments, Segment(" red" * filler)] if filler else segments


def filled_caption(
    backbone: Backbone, image: Image.Image, phrases: int, tokens: int
) -> list[Segment]:
    """A caption that makes the whole sequence `tokens` long, or as short as it can be."""
    plain = backbone.prepare(image, caption(phrases))
    missing = tokens - len(plain.tensors["input_ids"])
    return caption(phrases, max(0, missing))


def sequence(backbone: Backbone, tokens: int, phrases: int, cell: int = CELL) -> BackboneInputs:
    """One sample of `tokens` tokens; an image token stands for `cell` × `cell` pixels."""
    h, w = grid_for(tokens)
    image = picture(w * cell, h * cell)
    return backbone.prepare(image, filled_caption(backbone, image, phrases, tokens))


def random_sam(name: str) -> SamParts:
    """One of Meta's sizes with random weights."""
    shape = OFFICIAL[name].shape
    prompt_encoder, mask_decoder = _build_prompt_parts(shape)
    return SamParts(name, shape, _build_timm_encoder(shape), prompt_encoder, mask_decoder)
