"""Models with random weights, and images and captions that make sequences of a given length."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.observer import Observer
from flmm_core.pipeline.refiners.sam import SamEncoder, SamRefiner
from flmm_core.pipeline.refiners.sam_model import OFFICIAL, build_sam, build_untrained_sam
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment, statements
from performance.alternate import Case
from recipes.twins import PARTS

AROUND = 100
"""Tokens of a sequence that are not the image's: prompt, phrases, filler."""

SMALL = 160, 120
"""Width and height of the image of a tiny model."""

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


@dataclass(frozen=True)
class Size:
    """A published size.

    Attributes:
        plugin: Its backbone.
        cell: Pixels per side of an image token.
        text: Of the language model's config.
        vision: Of the vision tower's config.
    """

    plugin: str
    cell: int
    text: Mapping[str, Any]
    vision: Mapping[str, Any]


def _qwen(hidden: int, feed_forward: int, layers: int, heads: int, keys: int, words: int) -> Size:
    return Size(
        plugin="qwen",
        cell=28,
        text={
            "hidden_size": hidden,
            "intermediate_size": feed_forward,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": keys,
            "vocab_size": words,
            "layer_types": ["full_attention"] * layers,
            "max_position_embeddings": 32768,
        },
        vision={
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": 3420,
            "num_heads": 16,
            "patch_size": 14,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "out_hidden_size": hidden,
        },
    )


LLAVA = "llava-next-7b"
REAL = {
    "qwen2.5-vl-3b": _qwen(2048, 11008, 36, 16, 2, 151936),
    "qwen2.5-vl-7b": _qwen(3584, 18944, 28, 28, 4, 152064),
    LLAVA: Size(
        plugin="llava_next",
        cell=14,
        text={
            "hidden_size": 4096,
            "intermediate_size": 11008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "head_dim": 128,
            "vocab_size": 32064,
            "max_position_embeddings": 32768,
        },
        vision={
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "image_size": 336,
            "patch_size": 14,
            "projection_dim": 768,
        },
    ),
}
MEDIUM = Size(
    plugin="qwen",
    cell=16,
    text={
        "hidden_size": 1024,
        "intermediate_size": 2816,
        "num_hidden_layers": 12,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "layer_types": ["full_attention"] * 12,
        "max_position_embeddings": 8192,
    },
    # small and in windows only, so that it hides nothing of what the language model costs
    vision={"depth": 2, "window_size": 64, "fullatt_block_indexes": [], "out_hidden_size": 1024},
)
"""A Qwen2.5-VL between the tiny and the published sizes."""


def size_of(model: str) -> Size | None:
    """A size by name; None for a plugin's tiny model."""
    return MEDIUM if model == "medium" else REAL.get(model)


def parts(size: Size) -> tuple[Any, Any]:
    """(config, processor); its tokenizer is a tiny model's: what words mean costs nothing."""
    llava = size is REAL[LLAVA]
    config, processor = PARTS["llava_next"](336, 14) if llava else PARTS["qwen"]()
    for part, values in ((config.text_config, size.text), (config.vision_config, size.vision)):
        for key, value in values.items():
            setattr(part, key, value)
    if llava:
        return config, processor
    images, text = processor.image_processor, config.text_config
    images.patch_size, images.merge_size = config.vision_config.patch_size, 2
    images.size = {"shortest_edge": size.cell**2, "longest_edge": 16384 * size.cell**2}
    head = text.hidden_size // text.num_attention_heads
    sections = [head // 8, head * 3 // 16, head * 3 // 16]
    text.rope_parameters = {**text.rope_parameters, "mrope_section": sections}
    return config, processor


def random_model(config: Any, dtype: torch.dtype, device: str = "cpu") -> Any:
    """A VLM with random weights, made on its device in its dtype."""
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


def build_backbone(case: Case) -> Backbone:
    """The VLM of a case behind its plugin."""
    dtype, size = getattr(torch, case.dtype), size_of(case.model)
    spec = load_backbones().get(size.plugin if size else case.model)
    backbone: Backbone
    if size is None:
        backbone = load_class(spec).load(spec, dtype=dtype, device=case.device)
    else:
        config, processor = parts(size)
        vlm = random_model(config, dtype, case.device)
        backbone = load_class(spec)(spec, vlm, processor, model=case.model)
    return backbone


def build_refiner(case: Case) -> tuple[SamEncoder, SamRefiner]:
    """Both halves of the SAM of a case."""
    torch.manual_seed(0)
    official = OFFICIAL.get(case.sam)
    sam = build_untrained_sam(official.shape, case.sam) if official else build_sam(case.sam)
    encoder = SamEncoder(sam, half=case.dtype == "bfloat16").to(case.device)
    return encoder, SamRefiner(sam).to(case.device).eval()


def build_halves(case: Case) -> tuple[Observer, Head]:
    """The whole flow with a fresh head."""
    backbone = build_backbone(case)
    encoder, refiner = build_refiner(case)
    mask_head = MaskHead(backbone.attention_channels)
    prompts = TextPrompts(backbone.num_layers, backbone.hidden_size, refiner.prompt_width)
    head = Head(mask_head, prompts, refiner).to(case.device)
    return Observer(backbone, encoder), head.eval()


def image_for(case: Case, seed: int = 0) -> Image.Image:
    """Noise, of the size that the case's tokens ask for."""
    size = size_of(case.model)
    if size is None:
        return noise(*SMALL, seed)
    if not case.tokens:  # LLaVA-NeXT: four tiles
        return noise(672, 672, seed)
    h = math.isqrt(max(4, case.tokens - AROUND))
    w = max(4, case.tokens - AROUND) // h
    return noise(w * size.cell, h * size.cell, seed)


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    """An image of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def caption(phrases: int, filler: int = 0) -> list[Segment]:
    """Phrases as in training, each followed by a period; then words outside of any phrase."""
    segments = statements([PHRASES[place % len(PHRASES)] for place in range(phrases)])
    return [*segments, Segment(" red" * filler)] if filler else segments


def caption_for(backbone: Backbone, image: Image.Image, case: Case) -> list[Segment]:
    """A caption that makes the sequence `case.tokens` long, or as short as it can be."""
    plain = backbone.prepare(image, caption(case.phrases))
    return caption(case.phrases, max(0, case.tokens - len(plain)))


def discs(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """(P, H, W) bool, one disc per mask."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[:height, :width]
    side = min(height, width)
    masks = []
    for _ in range(count):
        radius = rng.uniform(0.1, 0.3) * side
        y, x = rng.uniform(radius, height - radius), rng.uniform(radius, width - radius)
        masks.append((rows - y) ** 2 + (columns - x) ** 2 < radius**2)
    return torch.from_numpy(np.stack(masks))
