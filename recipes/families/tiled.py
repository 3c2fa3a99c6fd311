"""Families that cut an image into tiles."""

from __future__ import annotations

import transformers as hf

from recipes.families.parts import CLIP, LLAMA, RELEASED, SIGLIP, Parts, Size, square, words

Grids = tuple[tuple[int, int], ...]


def llava_next(
    tile: int = 336,
    patch: int = 14,
    grids: Grids = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3)),
    size: Size = RELEASED,
) -> Parts:
    """`grids` are tiles (high, wide)."""
    tokenizer, chat, ids = words({"image_token": "<image>"}, "<image>")
    pinpoints = [[tile * high, tile * wide] for high, wide in grids]
    image = hf.LlavaNextImageProcessor(
        size={"shortest_edge": tile}, crop_size=square(tile), image_grid_pinpoints=pinpoints
    )
    processor = hf.LlavaNextProcessor(
        image,
        tokenizer,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        **chat,
    )
    config = hf.LlavaNextConfig(
        text_config={**LLAMA, **size.text},
        vision_config={**CLIP, "image_size": tile, "patch_size": patch, **size.vision},
        image_grid_pinpoints=pinpoints,
        image_token_index=ids["image_token"],
    )
    return Parts(config, processor)


def llava_onevision(
    tile: int = 384,
    patch: int = 14,
    most_tiles: int = 9,
    longest: int = 6,
    size: Size = RELEASED,
) -> Parts:
    """Canvases of up to `longest` x `longest` tiles, resampled down to those of `most_tiles`."""
    names = {"image_token": "<image>", "video_token": "<video>"}
    tokenizer, chat, ids = words(names, "<image>")
    counts, most = range(1, longest + 1), f"anyres_max_{most_tiles}"
    canvases = [[tile * high, tile * wide] for high in counts for wide in counts]
    processor = hf.LlavaOnevisionProcessor(
        hf.LlavaOnevisionImageProcessor(size=square(tile), image_grid_pinpoints=canvases),
        tokenizer,
        hf.LlavaOnevisionVideoProcessor(size=square(tile)),
        num_image_tokens=(tile // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio=most,
        **chat,
    )
    config = hf.LlavaOnevisionConfig(
        text_config={"model_type": "qwen2", **size.text},
        vision_config={**SIGLIP, "image_size": tile, "patch_size": patch, **size.vision},
        image_grid_pinpoints=canvases,
        vision_aspect_ratio=most,
        image_token_index=ids["image_token"],
        video_token_index=ids["video_token"],
    )
    return Parts(config, processor)


def idefics3(tile: int = 364, patch: int = 14, longest: int = 4, size: Size = RELEASED) -> Parts:
    """At most `longest` tiles in a row or column, beside the whole image as one tile."""
    names = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
    }
    counts = range(1, longest + 1)
    names |= {f"tile_{r}_{c}": f"<row_{r}_col_{c}>" for r in counts for c in counts}
    tokenizer, chat, ids = words(names, "<image>")
    image = hf.Idefics3ImageProcessor(
        size={"longest_edge": longest * tile}, max_image_size={"longest_edge": tile}
    )
    count = (tile // patch // 2) ** 2
    processor = hf.Idefics3Processor(image, tokenizer, image_seq_len=count, **chat)
    config = hf.Idefics3Config(
        text_config={**LLAMA, **size.text},
        vision_config={"image_size": tile, "patch_size": patch, **size.vision},
        scale_factor=2,
        image_token_id=ids["image_token"],
    )
    return Parts(config, processor)


def gemma3() -> Parts:
    names = {"image_token": "<image_soft_token>"}
    names |= {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>"}
    tokenizer, chat, ids = words(names, "<start_of_image>")
    image = hf.Gemma3ImageProcessor(size=square(896))
    processor = hf.Gemma3Processor(image, tokenizer, image_seq_length=256, **chat)
    config = hf.Gemma3Config(
        vision_config={**SIGLIP, "image_size": 896, "patch_size": 14},
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )
    return Parts(config, processor)


def internvl() -> Parts:
    names = {"start_image_token": "<img>", "end_image_token": "</img>"}
    names |= {"context_image_token": "<IMG_CONTEXT>", "video_token": "<video>"}
    tokenizer, chat, ids = words(names, "<IMG_CONTEXT>")
    image = hf.GotOcr2ImageProcessor(
        size=square(448), crop_to_patches=True, min_patches=1, max_patches=12
    )
    processor = hf.InternVLProcessor(
        image, tokenizer, hf.InternVLVideoProcessor(), image_seq_length=256, **chat
    )
    return Parts(hf.InternVLConfig(image_token_id=ids["context_image_token"]), processor)


def aya_vision() -> Parts:
    names = {
        "image_token": "<image>",
        "start_of_img_token": "<|START_OF_IMG|>",
        "end_of_img_token": "<|END_OF_IMG|>",
        "img_patch_token": "<|IMG_PATCH|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
        "tile_token": "TILE",
        "tile_global_token": "TILE_GLOBAL",
    }
    tokenizer, chat, ids = words(names, "<image>")
    image = hf.GotOcr2ImageProcessor(
        size=square(364), crop_to_patches=True, min_patches=1, max_patches=12
    )
    processor = hf.AyaVisionProcessor(
        image, tokenizer, patch_size=14, img_size=364, downsample_factor=2, **chat
    )
    config = hf.AyaVisionConfig(
        image_token_index=ids["img_patch_token"],
        vision_config={**SIGLIP, "image_size": 364, "patch_size": 14},
    )
    return Parts(config, processor)


def cohere2_vision() -> Parts:
    names = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    tokenizer, chat, ids = words(names, "<|IMG_PATCH|>")
    config = hf.Cohere2VisionConfig(
        image_token_id=ids["image_token"],
        vision_config={
            **SIGLIP,
            "image_size": 512,
            "patch_size": 16,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
        },
    )
    processor = hf.Cohere2VisionProcessor(hf.Cohere2VisionImageProcessor(), tokenizer, **chat)
    return Parts(config, processor)


def lfm2_vl() -> Parts:
    names = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    tokenizer, chat, ids = words(names, "<image>")
    processor = hf.Lfm2VlProcessor(hf.Lfm2VlImageProcessor(), tokenizer, **chat)
    return Parts(hf.Lfm2VlConfig(image_token_id=ids["image_token"]), processor)


def minicpm_v() -> Parts:
    marks = ("image_start", "image_end", "slice_start", "slice_end", "image_id_start")
    names = {"image_token": "<image>", "video_token": "<video>"}
    names |= {f"{mark}_token": f"<{mark}>" for mark in (*marks, "image_id_end")}
    tokenizer, chat, ids = words(names, "<image>")
    config = hf.MiniCPMV4_6Config(
        image_token_id=ids["image_token"], video_token_id=ids["video_token"]
    )
    config.vision_config.patch_size = 14
    image = hf.MiniCPMV4_6ImageProcessor()
    processor = hf.MiniCPMV4_6Processor(image, hf.MiniCPMV4_6VideoProcessor(), tokenizer, **chat)
    return Parts(config, processor)


def llama4() -> Parts:
    marks = ("image_start", "image_end", "patch", "tile_x_separator", "tile_y_separator")
    names = {"image_token": "<|image|>", **{mark: f"<|{mark}|>" for mark in marks}}
    tokenizer, chat, ids = words(names, "<|image|>")
    config = hf.Llama4Config(
        image_token_index=ids["patch"],
        boi_token_index=ids["image_start"],
        eoi_token_index=ids["image_end"],
        vision_config={"image_size": 336, "patch_size": 14, "vision_output_dim": 4096},
    )
    image = hf.Llama4ImageProcessor(max_patches=16, resize_to_max_canvas=False)
    return Parts(config, hf.Llama4Processor(image, tokenizer, patch_size=14, **chat))


TILED = (
    llava_next, llava_onevision, idefics3, gemma3, internvl,
    aya_vision, cohere2_vision, lfm2_vl, minicpm_v, llama4,
)  # fmt: skip
