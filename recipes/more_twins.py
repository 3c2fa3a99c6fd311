"""Toy-width folders of further families of the built-in plugins, like those of `recipes.twins`.

    python -m recipes.more_twins qwen3_vl DIR --seed 7

Their weights are random; `recipes.pretrain` teaches only the three of `recipes.twins`.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from recipes.twins import (
    HEADS,
    HIDDEN,
    VISION_FEED_FORWARD,
    VISION_HEADS,
    VISION_WIDTH,
    chat_template,
    text_config,
    train_tokenizer,
)

QWEN_TOKENS = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}


def _qwen(processor: Any, video: Any, patch: int, pixels: int) -> tuple[Any, dict[str, int], Any]:
    """(tokenizer, ids by the config's names, processor); a token covers 2 x 2 patches."""
    template = chat_template("<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = train_tokenizer(QWEN_TOKENS, template)
    names = ("image_token", "video_token", "vision_start_token", "vision_end_token")
    ids = {
        f"{name}_id": tokenizer.convert_tokens_to_ids(text)
        for name, text in zip(names, QWEN_TOKENS.values(), strict=True)
    }
    size = {"shortest_edge": (pixels - patch) ** 2, "longest_edge": (pixels + patch) ** 2}
    patches = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    images = transformers.Qwen2VLImageProcessorPil(**patches)
    return tokenizer, ids, processor(images, tokenizer, video(**patches), chat_template=template)


def qwen2_vl(patch: int = 8, pixels: int = 176) -> tuple[Any, Any]:
    """(config, processor): every image resized to about `pixels`² pixels."""
    classes = transformers.Qwen2VLProcessor, transformers.Qwen2VLVideoProcessor
    tokenizer, ids, processor = _qwen(*classes, patch, pixels)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}
    config = transformers.Qwen2VLConfig(
        text_config=text_config(tokenizer, rope_parameters=rope, max_position_embeddings=8192),
        vision_config={
            "depth": 3,
            "embed_dim": VISION_WIDTH,
            "hidden_size": HIDDEN,
            "mlp_ratio": 2,
            "num_heads": VISION_HEADS,
            "patch_size": patch,
        },
        **ids,
        tie_word_embeddings=False,
    )
    return config, processor


def qwen3_vl(patch: int = 8, pixels: int = 176) -> tuple[Any, Any]:
    """(config, processor) as above; features of two vision layers are added in the decoder."""
    classes = transformers.Qwen3VLProcessor, transformers.Qwen3VLVideoProcessor
    tokenizer, ids, processor = _qwen(*classes, patch, pixels)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [6, 5, 5]}
    config = transformers.Qwen3VLConfig(
        text_config=text_config(
            tokenizer,
            rope_parameters=rope,
            head_dim=HIDDEN // HEADS,
            max_position_embeddings=8192,
        ),
        vision_config={
            "depth": 4,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": VISION_FEED_FORWARD,
            "num_heads": VISION_HEADS,
            "patch_size": patch,
            "out_hidden_size": HIDDEN,
            "num_position_embeddings": 12**2,
            "deepstack_visual_indexes": [0, 2],
        },
        **ids,
        tie_word_embeddings=False,
    )
    return config, processor


CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": VISION_WIDTH,
    "intermediate_size": VISION_FEED_FORWARD,
    "num_hidden_layers": 4,
    "num_attention_heads": VISION_HEADS,
    "projection_dim": HIDDEN,
}
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": VISION_WIDTH,
    "intermediate_size": VISION_FEED_FORWARD,
    "num_hidden_layers": 3,
    "num_attention_heads": VISION_HEADS,
    "vision_use_head": False,
}


def llava(tile: int = 112, patch: int = 8) -> tuple[Any, Any]:
    """(config, processor): the middle square of the image, as the published files have it."""
    template = chat_template("<image>")
    tokenizer = train_tokenizer({"image_token": "<image>"}, template)
    images = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": tile}, crop_size={"height": tile, "width": tile}
    )
    processor = transformers.LlavaProcessor(
        images,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = transformers.LlavaConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={**CLIP, "image_size": tile, "patch_size": patch},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        tie_word_embeddings=False,
    )
    return config, processor


def llava_onevision(
    tile: int = 56, patch: int = 8, most_tiles: int = 4, longest: int = 4
) -> tuple[Any, Any]:
    """(config, processor): canvases of up to `longest` x `longest` tiles."""
    names = {"image_token": "<image>", "video_token": "<video>"}
    template = chat_template("<image>")
    tokenizer = train_tokenizer(names, template)
    counts = range(1, longest + 1)
    canvases = [[tile * high, tile * wide] for high in counts for wide in counts]
    images = transformers.LlavaOnevisionImageProcessorPil(
        size={"height": tile, "width": tile}, image_grid_pinpoints=canvases
    )
    most = f"anyres_max_{most_tiles}"
    processor = transformers.LlavaOnevisionProcessor(
        images,
        tokenizer,
        transformers.LlavaOnevisionVideoProcessor(size={"height": tile, "width": tile}),
        num_image_tokens=(tile // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=most,
        chat_template=template,
    )
    config = transformers.LlavaOnevisionConfig(
        text_config={
            "model_type": "qwen2",
            **text_config(tokenizer, max_position_embeddings=32768),
        },
        vision_config={**SIGLIP, "image_size": tile, "patch_size": patch},
        image_grid_pinpoints=canvases,
        vision_aspect_ratio=most,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        video_token_index=tokenizer.convert_tokens_to_ids("<video>"),
        tie_word_embeddings=False,
    )
    return config, processor


def deepseek_vl_hybrid(
    pixels: int = 112, patch: int = 8, high_res: int = 224, high_res_patch: int = 16
) -> tuple[Any, Any]:
    """(config, processor): squares of `pixels` and `high_res` pixels for two encoders."""
    template = chat_template("<image_placeholder>")
    tokenizer = train_tokenizer({"image_token": "<image_placeholder>"}, template)
    images = transformers.DeepseekVLHybridImageProcessorPil(
        size={"height": pixels, "width": pixels},
        high_res_size={"height": high_res, "width": high_res},
        min_size=14,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    processor = transformers.DeepseekVLHybridProcessor(
        images, tokenizer, chat_template=template, num_image_tokens=(pixels // patch) ** 2
    )
    config = transformers.DeepseekVLHybridConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={**SIGLIP, "image_size": pixels, "patch_size": patch},
        high_res_vision_config={
            "model_type": "sam_vision_model",
            "hidden_size": 64,
            "output_channels": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": high_res,
            "patch_size": high_res_patch,
            "window_size": 7,
            "global_attn_indexes": [1],
            "num_pos_feats": 8,
            "mlp_dim": 128,
            "initializer_range": 0.02,  # the default, 1e-10, would leave nothing to see
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    return config, processor


FAMILIES: dict[str, Callable[..., tuple[Any, Any]]] = {
    each.__name__: each for each in (qwen2_vl, qwen3_vl, llava, llava_onevision, deepseek_vl_hybrid)
}


def write_twin(family: str, folder: str | Path, seed: int = 0, **geometry: Any) -> Path:
    """Write a tiny model with random weights as a transformers folder; returns the folder."""
    config, processor = FAMILIES[family](**geometry)
    torch.manual_seed(seed)
    model = transformers.AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    model.float().save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny model with random weights.")
    parser.add_argument("family", choices=sorted(FAMILIES))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(write_twin(arguments.family, arguments.folder, arguments.seed))
