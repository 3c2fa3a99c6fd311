"""What the makers of families share."""

from __future__ import annotations

from typing import Any, NamedTuple

from recipes.words import chat_template, train_tokenizer

Settings = dict[str, Any]


class Size(NamedTuple):
    """Settings of a config that decide the number of weights; empty: as released."""

    text: Settings = {}  # noqa: RUF012
    vision: Settings = {}  # noqa: RUF012


RELEASED = Size()


class Parts(NamedTuple):
    """What a model's folder holds beside its weights."""

    config: Any
    processor: Any


QWEN = {
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
}
# Vision encoders and decoders at their published size.
CLIP: Settings = {
    "model_type": "clip_vision_model",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "projection_dim": 768,
}
SIGLIP: Settings = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "vision_use_head": False,
}
SIGLIP_LARGE: Settings = {
    **SIGLIP,
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "intermediate_size": 4096,
}
LLAMA: Settings = {"model_type": "llama"}
Ids = dict[str, int]


def words(names: dict[str, str], image: str) -> tuple[Any, dict[str, Any], Ids]:
    """A tokenizer, the chat template as a keyword of processors, and ids of the control tokens.

    `image` is what the template writes for an image.
    """
    template = chat_template(image)
    tokenizer = train_tokenizer(names, template)
    ids = {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()}
    return tokenizer, {"chat_template": template}, ids


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def qwen_ids(ids: Ids) -> dict[str, int]:
    return {
        "image_token_id": ids["image_token"],
        "video_token_id": ids["video_token"],
        "vision_start_token_id": ids["vision_bos_token"],
        "vision_end_token_id": ids["vision_eos_token"],
    }
