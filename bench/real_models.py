"""Models of real sizes with random weights, for a GPU.

Sizes are those of the published configurations; the tokenizers are the twins', since what a token
means changes neither time nor memory.
"""

from __future__ import annotations

from typing import Any

import torch

from bench.cases import CaseSpec
from recipes.twins import llava_next_parts, qwen_parts

QWEN_TEXT = {
    "qwen2.5-vl-3b": {
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_hidden_layers": 36,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "qwen2.5-vl-7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
QWEN_VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
LLAVA = "llava-next-7b"
LLAVA_TEXT = {
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
}
LLAVA_VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}
FAMILIES = {"qwen2.5-vl-3b": "qwen", "qwen2.5-vl-7b": "qwen", LLAVA: "llava_next"}
CELLS = {"qwen": 28, "llava_next": 14}
"""Pixels a side of what one image token stands for."""


def parts(name: str) -> tuple[Any, Any]:
    """(config, processor) of a real size."""
    if name == LLAVA:
        config, processor = llava_next_parts(pixels=336)
        processor.patch_size = 14
        text, vision = LLAVA_TEXT, LLAVA_VISION
    else:
        config, processor = qwen_parts()
        images = processor.image_processor
        images.patch_size, images.merge_size = 14, 2
        images.size = {"shortest_edge": 28**2, "longest_edge": 16384 * 28**2}
        text = QWEN_TEXT[name]
        vision = {**QWEN_VISION, "out_hidden_size": text["hidden_size"]}
        rope = {**config.text_config.rope_parameters, "mrope_section": [16, 24, 24]}
        config.text_config.rope_parameters = rope
        config.text_config.layer_types = ["full_attention"] * text["num_hidden_layers"]
    for part, values in ((config.text_config, text), (config.vision_config, vision)):
        for key, value in values.items():
            setattr(part, key, value)
    config.text_config.max_position_embeddings = 32768
    if hasattr(config.text_config, "head_dim"):
        config.text_config.head_dim = text["hidden_size"] // text["num_attention_heads"]
    return config, processor


def refusal() -> str | None:
    """Why real sizes cannot be measured here, or None."""
    if torch.cuda.is_available():
        return None
    return (
        "Real sizes need a GPU.\n"
        f"torch {torch.__version__} sees no CUDA device here.\n"
        "Run `python -m bench gpu` on a machine with one (80 GB for the 7B models), "
        "or `python -m bench recording` here."
    )


def specs(kind: str) -> list[CaseSpec]:
    """The cases of a kind: 1,280 and 4,096 image tokens for Qwen2.5-VL."""
    gpu = {"dtype": "bfloat16", "device": "cuda"}
    if kind == "recording":
        lengths = ((name, tokens) for name in QWEN_TEXT for tokens in (1380, 4196))
        qwen = [CaseSpec(kind, name, tokens, **gpu) for name, tokens in lengths]  # type: ignore[arg-type]
        return [*qwen, CaseSpec(kind, LLAVA, **gpu)]  # type: ignore[arg-type]
    if kind == "training":
        return [CaseSpec(kind, "medium", 1500, phrases=4, pictures=8, **gpu)]  # type: ignore[arg-type]
    if kind == "sentences":
        return [CaseSpec(kind, "medium", 1500, phrases=3, **gpu)]  # type: ignore[arg-type]
    return [CaseSpec(kind, name, phrases=16, device="cuda") for name in ("tiny", "vit_b", "vit_l")]
