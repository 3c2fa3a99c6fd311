"""Checks that a processor can be used: its chat template, and which token stands for an image."""

from __future__ import annotations

from typing import Any

from PIL import Image

from flmm_core.errors import UsageError, WeightsError
from flmm_core.pipeline.backbone.conversation import named_token, prompt_text, user_turns

REPAIR = "Use the processor files of the model's original folder."


def check_processor(
    processor: Any, config: Any, source: str, declared: str, template: str
) -> tuple[str, int]:
    """The token that an image's features replace, as text and as its id.

    Args:
        processor: Without a chat template it is given the tokenizer's, or else `template`.
        config: The VLM's.
        source: Names the model in messages.
        declared: `Backbone.image_token`; empty if the plugin does not say.
        template: `Requirements.chat_template`.

    Raises:
        WeightsError: The chat template shows no image, or the token is not the model's.
    """
    asked = f"The processor of '{source}' cannot be used."
    settings = "patch_size", "vision_feature_select_strategy"
    if unknown := [name for name in settings if getattr(processor, name, name) is None]:
        found = f"It does not say {' and '.join(unknown)}."
        raise WeightsError(asked, found=found, repair=REPAIR)
    tokenizer = processor.tokenizer
    if not getattr(processor, "chat_template", None):
        processor.chat_template = tokenizer.chat_template or template or None
    try:
        text = prompt_text(processor, user_turns("Where?", None))
    except UsageError as error:
        found = f"Its chat template cannot show a question about an image. {error.found}"
        if not processor.chat_template:
            found = "It has no chat template."
        raise WeightsError(asked, found=found, repair=REPAIR) from error
    placeholder = named_token(processor, "image_token")
    token = declared or placeholder
    number = None if token is None else _id(tokenizer, token)
    known = (getattr(config, name, None) for name in ("image_token_id", "image_token_index"))
    expected = next((int(each) for each in known if each is not None), number)
    found = f"Its image token {token!r} has id {number}; the model's is {expected}."
    if expected is not None:
        if number == expected and placeholder is not None and placeholder in text:
            return str(token), expected
        # some processors name what stands in the template, and write another token instead of it
        if (number == expected or not declared) and _replaced(processor, text, expected):
            return str(tokenizer.convert_ids_to_tokens(expected)), expected
        if number == expected:
            found = f"Its chat template shows no image: {text!r}."
    raise WeightsError(asked, found=found, repair=REPAIR)


def _id(tokenizer: Any, token: str) -> int | None:
    found = tokenizer.convert_tokens_to_ids(token)
    return None if found is None or tokenizer.convert_ids_to_tokens(found) != token else int(found)


def _replaced(processor: Any, text: str, token_id: int) -> bool:
    """Whether the processor writes this token for an image."""
    image = Image.new("RGB", (64, 64), (120, 90, 60))
    try:
        ids = processor(text=[text], images=[image], return_tensors="pt")["input_ids"]
    except Exception:  # it takes the text for one without an image
        return False
    return bool((ids == token_id).any())
