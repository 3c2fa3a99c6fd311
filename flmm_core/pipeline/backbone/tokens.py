"""Image, prompt and caption -> token ids, and which of them belong to which phrase."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import DataError, UsageError
from flmm_core.pipeline.types import Prefix
from flmm_core.segment import Segment


def control_strings(processor: Any) -> tuple[str, ...]:
    """The strings that a tokenizer would read as control tokens in a user's text, longest first.

    Added tokens that are plain words or single characters are vocabulary, not control tokens.
    """
    tokenizer = processor.tokenizer
    found = set(tokenizer.all_special_tokens)
    found |= {token for token in tokenizer.get_added_vocab() if not token.isalnum()}
    found |= {getattr(processor, kind, None) or "" for kind in ("image_token", "video_token")}
    stripped = {token.strip() for token in found}
    return tuple(sorted((t for t in stripped if len(t) > 1), key=lambda t: (-len(t), t)))


def escape(text: str, controls: Collection[str]) -> str:
    """The text with a space after the first character of every control string in it."""
    for control in controls:
        text = text.replace(control, f"{control[0]} {control[1:]}")
    return text


def encode_prefix(processor: Any, image: Image.Image, prompt: str, name: str) -> Prefix:
    """A user's turn with one image and an escaped text, up to where the model's answer begins.

    Raises:
        UsageError: There is no image.
        DataError: The image has no pixels, or the processor rejects it.
    """
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"Sample '{name}' has no image.",
            found=f"Found {type(image).__name__}; expected a PIL image.",
            repair="Read it with flmm_core.data.images.read_image.",
        )
    size = f"{image.width} x {image.height} pixels"
    if 0 in image.size:
        raise DataError(
            f"The image of sample '{name}' has no pixels.",
            found=f"Its size is {size}.",
            repair="Remove it from the data, or crop it again.",
        )
    content = [{"type": "image"}, {"type": "text", "text": prompt}]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    # Some templates write the start token themselves; a second one would shift every position.
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
            f"The model's processor rejects the image of sample '{name}'.",
            found=f"Its size is {size}: {error}",
            repair="Crop or resize it.",
        ) from error
    tensors = {key: value for key, value in encoded.items() if isinstance(value, Tensor)}
    shape = tensors["input_ids"].shape  # (1, S)
    tokens = {
        key: value[0]
        for key, value in tensors.items()
        if value.shape == shape and not value.is_floating_point()
    }
    return Prefix(tokens, {key: value for key, value in tensors.items() if key not in tokens})


def tokenize_caption(
    tokenizer: Any, segments: Sequence[Segment], start: int, limit: int, name: str
) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Tokenize each segment alone and concatenate them without separators or special tokens.

    Tokens beyond `limit` are cut off: after the last phrase they cannot change its attention.

    Args:
        tokenizer: The processor's.
        segments: The caption in pieces.
        start: The position of the caption's first token in the sequence.
        limit: The most tokens that the language model can take, `start` included.
        name: Names the sample in messages.

    Returns:
        (n,) int64 token ids, and per phrase the (T_p,) int64 positions of its tokens in the
        whole sequence.

    Raises:
        UsageError: A phrase is empty, has no tokens or exceeds the limit, the phrases are not
            numbered 0..P-1, or `start` exceeds the limit.
    """
    if start > limit:
        raise UsageError(
            f"The prompt of sample '{name}' is longer than the model can take.",
            found=f"With the image it has {start} tokens; the limit is {limit}.",
            repair="Shorten the prompt or make the image smaller.",
        )
    numbers = sorted({piece.phrase for piece in segments if piece.phrase is not None})
    if numbers != list(range(len(numbers))):
        raise UsageError(
            f"The phrases of sample '{name}' are not numbered from 0 without gaps.",
            found=f"Found the numbers {numbers}.",
            repair=f"Number them 0 to {len(numbers) - 1}.",
        )
    texts = [""] * len(numbers)
    rows: list[list[int]] = [[] for _ in numbers]
    ids: list[int] = []
    for piece in segments:
        new = tokenizer(piece.text, add_special_tokens=False)["input_ids"] if piece.text else []
        if piece.phrase is not None:
            texts[piece.phrase] += piece.text
            rows[piece.phrase] += range(start + len(ids), start + len(ids) + len(new))
        ids += new
    for number, (text, positions) in enumerate(zip(texts, rows, strict=True)):
        if not text.strip() or not positions:
            problem = "has no tokens" if text.strip() else "is empty"
            raise UsageError(
                f"Phrase {number} of sample '{name}' {problem}.",
                found=f"Its text is {text!r}, of {len(positions)} tokens.",
                repair="Give it at least one word.",
            )
        if max(positions) >= limit:
            raise UsageError(
                f"Phrase {number} ('{text}') of sample '{name}' is cut off.",
                found=f"It ends at token {max(positions) + 1}; the model's limit is {limit}.",
                repair="Shorten the caption, or split it into several samples.",
            )
    phrase_rows = tuple(torch.tensor(positions, dtype=torch.int64) for positions in rows)
    return torch.tensor(ids[: limit - start], dtype=torch.int64), phrase_rows
