"""What the makers of families share."""

from __future__ import annotations

from typing import Any, NamedTuple

from recipes.twins import train_tokenizer


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
SIGLIP = {
    "model_type": "siglip_vision_model",
    "hidden_size": 1152,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
    "intermediate_size": 4304,
    "vision_use_head": False,
}
Ids = dict[str, int]


def words(names: dict[str, str], image: str) -> tuple[Any, dict[str, Any], Ids]:
    """A tokenizer, the chat template as a keyword of processors, and ids of the control tokens.

    `image` is what the template writes for an image.
    """
    template = (
        "{{ bos_token }}{% for message in messages %}{{ message['role'] }}: "
        "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endif %}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %} {% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
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
