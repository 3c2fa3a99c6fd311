"""Image and prompt -> the processor's tensors, with nothing in the prompt taken for control."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from PIL import Image
from torch import Tensor

from flmm_core.errors import DataError, UsageError


def control_strings(processor: Any) -> tuple[str, ...]:
    """What a tokenizer would take for control tokens if a user wrote it, longest first.

    Added tokens that are plain words or single characters are vocabulary, not control.
    """
    tokenizer = processor.tokenizer
    found = set(tokenizer.all_special_tokens)
    found |= {token for token in tokenizer.get_added_vocab() if not token.isalnum()}
    found |= {getattr(processor, kind, None) or "" for kind in ("image_token", "video_token")}
    stripped = {token.strip() for token in found}
    return tuple(sorted((t for t in stripped if len(t) > 1), key=lambda t: (-len(t), t)))


def defuse(text: str, controls: Collection[str]) -> str:
    """The text with a space after the first character of every control string in it."""
    for control in controls:
        text = text.replace(control, f"{control[0]} {control[1:]}")
    return text


def encode_prompt(processor: Any, image: Image.Image, prompt: str, name: str) -> dict[str, Tensor]:
    """A user's turn with one image and a text, up to where the model is to answer.

    Args:
        processor: A transformers processor with a chat template.
        image: The image.
        prompt: What the user says, defused.
        name: Names the sample in messages.

    Returns:
        The processor's tensors; those with one value a token are (S,), without batch dimension.

    Raises:
        UsageError: There is no image.
        DataError: The image has no pixels, or the processor refuses it.
    """
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"Sample '{name}' has no image.",
            found=f"Found {type(image).__name__}; a PIL image was expected.",
            repair="Read it with flmm_core.data.images.read_image.",
        )
    size = f"{image.width} x {image.height} pixels"
    if 0 in image.size:
        raise DataError(
            f"The image of sample '{name}' has no pixels.",
            found=f"It is {size}.",
            repair="Remove it from the data, or crop it anew.",
        )
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    # Some templates write the start token themselves; a second one would change every position.
    bos = processor.tokenizer.bos_token
    try:
        encoded = processor(
            text=[text],
            images=[image.convert("RGB")],
            return_tensors="pt",
            add_special_tokens=not (bos and text.startswith(bos)),
        )
    except (ValueError, ArithmeticError) as error:
        raise DataError(
            f"The image of sample '{name}' is refused by the model's processor.",
            found=f"It is {size}: {error}",
            repair="Crop or resize it.",
        ) from error
    shape = encoded["input_ids"].shape  # (1, S)
    return {
        key: value[0] if value.shape == shape and not value.is_floating_point() else value
        for key, value in encoded.items()
        if isinstance(value, Tensor)
    }
