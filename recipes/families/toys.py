"""Families at toy size: small images, few tokens and weights, and the words of drawn scenes.

Those of `recipes.families` keep the released geometry. `recipes.twins` trains some of these.
"""

from __future__ import annotations

from collections.abc import Callable

import transformers as hf

from recipes.families import one_view, refused, tiled
from recipes.families.parts import Parts, Settings, Size

HIDDEN, LAYERS, HEADS = 128, 4, 4
TEXT: Settings = {
    "hidden_size": HIDDEN,
    "intermediate_size": 352,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
VIT: Settings = {"hidden_size": 96, "intermediate_size": 256}
CLIP: Settings = {**VIT, "num_hidden_layers": 4, "num_attention_heads": 4, "projection_dim": HIDDEN}
SIGLIP: Settings = {**VIT, "num_hidden_layers": 3, "num_attention_heads": 4}
QWEN: Settings = {**VIT, "depth": 3, "num_heads": 4, "out_hidden_size": HIDDEN}


def finished(parts: Parts) -> Parts:
    """The config knows the tokenizer, and Pillow resizes the images."""
    config, processor = parts
    tokenizer, images = processor.tokenizer, processor.image_processor
    config.tie_word_embeddings = False
    text = config.get_text_config()
    text.vocab_size = len(tokenizer)
    for token in ("pad", "bos", "eos"):
        setattr(text, f"{token}_token_id", getattr(tokenizer, f"{token}_token_id"))
    if getattr(config, "pad_token_id", None) is not None:
        config.pad_token_id = tokenizer.pad_token_id
    pil = getattr(hf, f"{type(images).__name__}Pil")
    processor.image_processor = pil.from_dict(images.to_dict())
    return parts


def _rope(*sections: int) -> Settings:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}
    return {"rope_parameters": rope}


def _about(pixels: int, patch: int) -> tuple[int, int]:
    return (pixels - patch) ** 2, (pixels + patch) ** 2


def qwen2_vl(patch: int = 8, pixels: int = 176) -> Parts:
    """Every image is resized to about `pixels`² pixels."""
    vision = {"depth": 3, "embed_dim": 96, "hidden_size": HIDDEN, "mlp_ratio": 2, "num_heads": 4}
    size = Size(TEXT | _rope(4, 6, 6), vision)
    return finished(one_view.qwen2_vl(patch, _about(pixels, patch), size))


def qwen2_5_vl(patch: int = 8, pixels: int = 176, window: int = 4096) -> Parts:
    """One window as large as any image: small windows mean hundreds of tiny calls."""
    vision = {**QWEN, "window_size": window, "fullatt_block_indexes": [0, 1, 2]}
    size = Size(TEXT | _rope(1, 6, 9), vision)
    return finished(one_view.qwen2_5_vl(patch, _about(pixels, patch), size))


def qwen3_vl(patch: int = 8, pixels: int = 176) -> Parts:
    """Features of two vision layers are added in the decoder."""
    vision = {
        **QWEN,
        "intermediate_size": 512,  # twice Qwen2.5-VL's, which has gates
        "num_position_embeddings": 12**2,
        "deepstack_visual_indexes": [0, 1],
    }
    size = Size({**TEXT, **_rope(6, 5, 5), "head_dim": HIDDEN // HEADS}, vision)
    return finished(one_view.qwen3_vl(patch, _about(pixels, patch), size))


def llava(side: int = 112, patch: int = 8) -> Parts:
    return finished(one_view.llava(side, patch, Size(TEXT, CLIP)))


def deepseek_vl(pixels: int = 112, patch: int = 8) -> Parts:
    return finished(one_view.deepseek_vl(pixels, patch, Size(TEXT, SIGLIP)))


def deepseek_vl_hybrid(pixels: int = 112, patch: int = 8, high_res: int = 224) -> Parts:
    sam = {
        "model_type": "sam_vision_model",
        "hidden_size": 64,
        "output_channels": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": high_res,
        "patch_size": 16,
        "window_size": 7,
        "global_attn_indexes": [1],
        "num_pos_feats": 8,
        "mlp_dim": 128,
        "initializer_range": 0.02,  # the default, 1e-10, would leave nothing to see
    }
    size = Size(TEXT, SIGLIP)
    return finished(refused.deepseek_vl_hybrid(pixels, patch, high_res, size, sam))


def llava_next(
    pixels: int = 84, patch: int = 12, grids: tiled.Grids = ((2, 2), (1, 2), (2, 1))
) -> Parts:
    """Tiles of `pixels`; `grids` are tiles (high, wide)."""
    return finished(tiled.llava_next(pixels, patch, grids, Size(TEXT, CLIP)))


def llava_onevision(tile: int = 56, patch: int = 8, most_tiles: int = 4, longest: int = 4) -> Parts:
    size = Size(TEXT | {"max_position_embeddings": 32768}, SIGLIP)
    return finished(tiled.llava_onevision(tile, patch, most_tiles, longest, size))


def idefics3(tile: int = 96, patch: int = 8, longest: int = 2) -> Parts:
    return finished(tiled.idefics3(tile, patch, longest, Size(TEXT, SIGLIP)))


TOYS: dict[str, Callable[..., Parts]] = {
    make.__name__: make
    for make in (
        qwen2_vl, qwen2_5_vl, qwen3_vl, llava, deepseek_vl, deepseek_vl_hybrid,
        llava_next, llava_onevision, idefics3,
    )
}  # fmt: skip
