"""Families whose image tokens lie nowhere in particular: they must be refused."""

from __future__ import annotations

import transformers as hf

from recipes.families.parts import (
    LLAMA,
    RELEASED,
    SIGLIP,
    SIGLIP_LARGE,
    Parts,
    Settings,
    Size,
    square,
    words,
)


def idefics2() -> Parts:
    """A perceiver: each token is a mix of the whole image."""
    names = {"image_token": "<image>", "image_boundary_token": "<fake_token_around_image>"}
    tokenizer, chat, ids = words(names, "<image>")
    image = hf.Idefics2ImageProcessor()
    processor = hf.Idefics2Processor(image, tokenizer, image_seq_len=64, **chat)
    return Parts(hf.Idefics2Config(image_token_id=ids["image_token"]), processor)


def aria() -> Parts:
    """Learned queries that attend to all patches, as in MiniCPM-V 2."""
    tokenizer, chat, ids = words({"image_token": "<|img|>"}, "<|img|>")
    vision = {**SIGLIP, "model_type": "idefics3_vision", "image_size": 980, "patch_size": 14}
    config = hf.AriaConfig(vision_config=vision, image_token_index=ids["image_token"])
    return Parts(config, hf.AriaProcessor(hf.AriaImageProcessor(), tokenizer, **chat))


def mllama() -> Parts:
    """Cross-attention: no image tokens in the sequence."""
    tokenizer, chat, ids = words({"image_token": "<|image|>", "p": "<|python_tag|>"}, "<|image|>")
    processor = hf.MllamaProcessor(hf.MllamaImageProcessor(size=square(448)), tokenizer, **chat)
    return Parts(hf.MllamaConfig(image_token_index=ids["image_token"]), processor)


def got_ocr2() -> Parts:
    """A convolutional neck: each token sees its neighbors' patches."""
    names = {"image_token": "<imgpad>", "start": "<img>", "end": "</img>"}
    tokenizer, chat, ids = words(names, "<img><imgpad></img>")
    image = hf.GotOcr2ImageProcessor(size=square(1024))
    return Parts(
        hf.GotOcr2Config(image_token_id=ids["image_token"]),
        hf.GotOcr2Processor(image, tokenizer, **chat),
    )


def deepseek_vl_hybrid(
    side: int = 384,
    patch: int = 16,
    high_res: int = 1024,
    size: Size = RELEASED,
    high_res_vision: Settings = {},  # noqa: B006 - nobody changes it
) -> Parts:
    """SAM's encoder beside SigLIP's: convolutions again."""
    tokenizer, chat, ids = words({"image_token": "<image_placeholder>"}, "<image_placeholder>")
    images = hf.DeepseekVLHybridImageProcessor(
        size=square(side),
        high_res_size=square(high_res),
        min_size=14,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    count = (side // patch) ** 2
    processor = hf.DeepseekVLHybridProcessor(images, tokenizer, num_image_tokens=count, **chat)
    config = hf.DeepseekVLHybridConfig(
        text_config={**LLAMA, **size.text},
        vision_config={
            **SIGLIP_LARGE,
            "image_size": side,
            "patch_size": patch,
            **size.vision,
        },
        high_res_vision_config=high_res_vision,
        image_token_id=ids["image_token"],
    )
    return Parts(config, processor)


REFUSED = (idefics2, aria, mllama, got_ocr2, deepseek_vl_hybrid)
