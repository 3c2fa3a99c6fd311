"""Families whose images become one grid."""

from __future__ import annotations

from typing import Any

import transformers as hf

from recipes.families.parts import (
    CLIP,
    LLAMA,
    QWEN,
    RELEASED,
    SIGLIP,
    SIGLIP_LARGE,
    Parts,
    Size,
    qwen_ids,
    square,
    words,
)


def _qwen(classes: tuple[Any, Any, Any], patch: int, limits: tuple[int, int], size: Size) -> Parts:
    """A token covers 2 x 2 patches; `limits` are pixels (height x width) of the resized image."""
    config, processor, videos = classes
    tokenizer, chat, ids = words(QWEN, "<|vision_start|><|image_pad|><|vision_end|>")
    edges = {"shortest_edge": limits[0], "longest_edge": limits[1]}
    patches = {"patch_size": patch, "merge_size": 2, "temporal_patch_size": 2, "size": edges}
    images = hf.Qwen2VLImageProcessor(**patches)
    return Parts(
        config(
            text_config=size.text,
            vision_config={"patch_size": patch, **size.vision},
            **qwen_ids(ids),
        ),
        processor(images, tokenizer, videos(**patches), **chat),
    )


def qwen2_vl(
    patch: int = 14,
    limits: tuple[int, int] = (56 * 56, 28 * 28 * 1280),
    size: Size = RELEASED,
) -> Parts:
    classes = hf.Qwen2VLConfig, hf.Qwen2VLProcessor, hf.Qwen2VLVideoProcessor
    return _qwen(classes, patch, limits, size)


def qwen2_5_vl(
    patch: int = 14,
    limits: tuple[int, int] = (56 * 56, 28 * 28 * 1280),
    size: Size = RELEASED,
) -> Parts:
    classes = hf.Qwen2_5_VLConfig, hf.Qwen2_5_VLProcessor, hf.Qwen2VLVideoProcessor
    return _qwen(classes, patch, limits, size)


def qwen3_vl(
    patch: int = 16, limits: tuple[int, int] = (65536, 1280 * 1024), size: Size = RELEASED
) -> Parts:
    classes = hf.Qwen3VLConfig, hf.Qwen3VLProcessor, hf.Qwen3VLVideoProcessor
    return _qwen(classes, patch, limits, size)


def glm4v() -> Parts:
    names = {"image_token": "<|image|>", "video_token": "<|video|>"}
    names |= {"start": "<|begin_of_image|>", "end": "<|end_of_image|>"}
    names |= {"video_start": "<|begin_of_video|>", "video_end": "<|end_of_video|>"}
    tokenizer, chat, ids = words(names, "<|begin_of_image|><|image|><|end_of_image|>")
    image = hf.Glm4vImageProcessor(size={"shortest_edge": 12544, "longest_edge": 1200000})
    config = hf.Glm4vConfig(
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        image_start_token_id=ids["start"],
        image_end_token_id=ids["end"],
        video_start_token_id=ids["video_start"],
        video_end_token_id=ids["video_end"],
    )
    return Parts(config, hf.Glm4vProcessor(image, tokenizer, hf.Glm4vVideoProcessor(), **chat))


def paddleocr_vl() -> Parts:
    names = {"image_token": "<|IMAGE_PLACEHOLDER|>", "video_token": "<|VIDEO|>"}
    names |= {"vision_bos_token": "<|IMAGE_START|>", "vision_eos_token": "<|IMAGE_END|>"}
    tokenizer, chat, ids = words(names, "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>")
    processor = hf.PaddleOCRVLProcessor(hf.PaddleOCRVLImageProcessor(), tokenizer, **chat)
    return Parts(hf.PaddleOCRVLConfig(**qwen_ids(ids)), processor)


def _llava(config: Any, side: int = 336, patch: int = 14, size: Size = RELEASED) -> Parts:
    tokenizer, chat, ids = words({"image_token": "<image>"}, "<image>")
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": side}, crop_size=square(side)),
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **chat,
    )
    return Parts(
        config(
            text_config={**LLAMA, **size.text},
            vision_config={**CLIP, "image_size": side, "patch_size": patch, **size.vision},
            image_token_index=ids["image_token"],
        ),
        processor,
    )


def llava(side: int = 336, patch: int = 14, size: Size = RELEASED) -> Parts:
    return _llava(hf.LlavaConfig, side, patch, size)


def vipllava() -> Parts:
    return _llava(hf.VipLlavaConfig)


def deepseek_vl(side: int = 384, patch: int = 16, size: Size = RELEASED) -> Parts:
    tokenizer, chat, ids = words({"image_token": "<image_placeholder>"}, "<image_placeholder>")
    image = hf.DeepseekVLImageProcessor(
        size=square(side), min_size=14, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    count = (side // patch) ** 2
    processor = hf.DeepseekVLProcessor(image, tokenizer, num_image_tokens=count, **chat)
    vision = {**SIGLIP_LARGE, "image_size": side, "patch_size": patch, **size.vision}
    config = hf.DeepseekVLConfig(
        text_config={**LLAMA, **size.text},
        vision_config=vision,
        image_token_id=ids["image_token"],
    )
    return Parts(config, processor)


def janus() -> Parts:
    names = {"image_token": "<image_placeholder>", "boi_token": "<boi>", "eoi_token": "<eoi>"}
    tokenizer, chat, ids = words(names, "<image_placeholder>")
    processor = hf.JanusProcessor(hf.JanusImageProcessor(), tokenizer, **chat)
    return Parts(hf.JanusConfig(image_token_id=ids["image_token"]), processor)


def paligemma() -> Parts:
    tokenizer, chat, ids = words({"image_token": "<image>"}, "<image>")
    image = hf.SiglipImageProcessor(size=square(224))
    image.image_seq_length = 256
    config = hf.PaliGemmaConfig(
        image_token_index=ids["image_token"],
        vision_config={**SIGLIP, "image_size": 224, "patch_size": 14},
        projection_dim=2048,
    )
    return Parts(config, hf.PaliGemmaProcessor(image, tokenizer, **chat))


def _pixtral(names: dict[str, str], image: str) -> tuple[Any, dict[str, int]]:
    """(processor, ids)."""
    tokenizer, chat, ids = words(names, image)
    processor = hf.PixtralProcessor(
        hf.PixtralImageProcessor(patch_size=14, size={"longest_edge": 1540}),
        tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        **chat,
    )
    return processor, ids


def mistral3() -> Parts:
    names = {"image_token": "[IMG]"}
    names |= {"image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"}
    processor, ids = _pixtral(names, "[IMG]")
    config = hf.Mistral3Config(
        image_token_index=ids["image_token"],
        spatial_merge_size=2,
        vision_config={"model_type": "pixtral", "image_size": 1540, "patch_size": 14},
    )
    return Parts(config, processor)


def lighton_ocr() -> Parts:
    names = {"image_token": "<|image_pad|>"}
    names |= {"image_break_token": "<|vision_pad|>", "image_end_token": "<|vision_end|>"}
    tokenizer, chat, ids = words(names, "<|image_pad|>")
    processor = hf.LightOnOcrProcessor(
        hf.PixtralImageProcessor(patch_size=14, size={"longest_edge": 1540}),
        tokenizer,
        patch_size=14,
        spatial_merge_size=2,
        **chat,
    )
    return Parts(hf.LightOnOcrConfig(image_token_id=ids["image_token"]), processor)


def ovis2() -> Parts:
    names = {"image_token": "<image>", "atom": "<IMG_ATOM>"}
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    names |= {mark.strip("<>"): mark for mark in marks}
    tokenizer, chat, ids = words(names, "<image>")
    config = hf.Ovis2Config(
        image_token_id=ids["atom"],
        visual_indicator_token_ids=[ids[mark.strip("<>")] for mark in marks],
        vision_config={"image_size": 448, "patch_size": 14, "hidden_stride": 2},
    )
    image = hf.Ovis2ImageProcessor(size=square(448))
    return Parts(config, hf.Ovis2Processor(image, tokenizer, image_seq_length=256, **chat))


def video_llama_3() -> Parts:
    """A token is a patch of 14 x 14 pixels: more than 100 lie beside each other."""
    names = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    tokenizer, chat, ids = words(names, "<|image_pad|>")
    config = hf.VideoLlama3Config(
        vision_config={**SIGLIP, "model_type": "video_llama_3_vision", "patch_size": 14},
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
    )
    images, videos = hf.VideoLlama3ImageProcessor(), hf.VideoLlama3VideoProcessor()
    return Parts(config, hf.VideoLlama3Processor(images, tokenizer, videos, **chat))


ONE_VIEW = (
    qwen2_vl, qwen2_5_vl, qwen3_vl, glm4v, paddleocr_vl, llava, vipllava, deepseek_vl, janus,
    paligemma, mistral3, lighton_ocr, ovis2, video_llama_3,
)  # fmt: skip
