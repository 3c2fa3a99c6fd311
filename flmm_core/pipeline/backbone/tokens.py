"""Image, prompt and caption -> token ids, and which of them belong to which phrase."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import DataError, UsageError, WeightsError, shortened
from flmm_core.images import to_image
from flmm_core.pipeline.backbone.conversation import (
    Turns,
    adds_special_tokens,
    answer_text,
    common_length,
    escape,
    prompt_text,
)
from flmm_core.pipeline.backbone.view_check import blaming, naming_sample
from flmm_core.pipeline.types import Prefix
from flmm_core.segment import Segment, caption_text, pieces_of


class Caption(NamedTuple):
    """A caption as tokens, and where they stand.

    Attributes:
        start: As in `BackboneInputs`.
        ids: (n,) int64.
        rows: Per phrase, (T_p,) int64 positions of its tokens in the whole sequence.
        offsets: As in `BackboneInputs`.
    """

    start: int
    ids: Tensor
    rows: tuple[Tensor, ...]
    offsets: tuple[tuple[int, int], ...] = ()


def encode_prefix(
    processor: Any,
    image: Image.Image,
    shrink: Callable[[Image.Image], Image.Image],
    turns: Turns,
    image_token_id: int,
    name: str,
    apart: bool = False,
) -> Prefix:
    """A user's turn with one image, up to where the model's answer begins.

    `shrink` is `Backbone.shrunk`, `apart` is `Requirements.bidirectional_prefix`.

    Raises:
        UsageError: There is no image.
        DataError: The image has no pixels, or the processor rejects it.
    """
    text = prompt_text(processor, turns)
    tokens, image_tensors = encode(processor, text, [image], shrink, name)
    special = adds_special_tokens(processor.tokenizer, text)
    text_ids = processor.tokenizer(text, add_special_tokens=special)["input_ids"]
    tail = common_length(tokens["input_ids"].tolist()[::-1], text_ids[::-1])
    images = [place for place in range(tail) if text_ids[-1 - place] == image_token_id]
    return Prefix(
        tokens,
        image_tensors,
        turns=turns,
        text_ids=tuple(text_ids),
        tail=images[0] if images else tail,
        apart=apart,
    )


def read_image(image: Image.Image, name: str) -> Image.Image:
    """A sample's image as upright RGB, whatever its mode; itself if it is.

    Raises:
        UsageError: There is no image.
        DataError: It has no pixels, or cannot be decoded.
    """
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"Sample '{name}' has no image.",
            found=f"Found {type(image).__name__}; expected a PIL image.",
            repair="Read it with flmm_core.data.images.read_image.",
        )
    if 0 in image.size:
        raise DataError(
            f"The image of sample '{name}' has no pixels.",
            found=f"Its size is {image.width} x {image.height} pixels.",
            repair="Remove it from the data, or crop it again.",
        )
    with naming_sample(name):
        return to_image(image)


def encode(
    processor: Any,
    text: str,
    images: Sequence[Image.Image],
    shrink: Callable[[Image.Image], Image.Image],
    name: str,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """A rendered conversation and its images as the VLM takes them.

    Returns:
        Per-token tensors (S,) by keyword, and the tensors of the images by keyword.

    Raises: as `encode_prefix`.
    """
    images = [read_image(image, name) for image in images]
    with blaming(shrink):
        given = [shrink(image) for image in images]
    try:
        encoded = processor(
            text=[text],
            images=given,
            return_tensors="pt",
            add_special_tokens=adds_special_tokens(processor.tokenizer, text),
        )
    except (ValueError, ArithmeticError) as error:
        size = " and ".join(f"{image.width} x {image.height} pixels" for image in images)
        raise DataError(
            f"The model's processor rejects the image of sample '{name}'.",
            found=f"Its size is {size}: {error}",
            repair="Crop or resize it.",
        ) from error
    tensors = {
        key: value
        for key, value in encoded.items()
        if isinstance(value, Tensor) and key != "labels"  # for training
    }
    shape = tensors["input_ids"].shape  # (1, S)
    tokens = {
        key: value[0]
        for key, value in tensors.items()
        if value.shape == shape and not value.is_floating_point()
    }
    return tokens, {key: value for key, value in tensors.items() if key not in tokens}


def longest(text_config: Any, tokenizer: Any) -> int:
    """The most tokens that the language model can take."""
    # the tokenizer's own limit is often unset
    limit = getattr(text_config, "max_position_embeddings", None)
    return int(limit or tokenizer.model_max_length)


def tokenize_whole(
    processor: Any,
    prefix: Prefix,
    segments: Sequence[Segment],
    controls: Collection[str],
    limit: int,
    name: str,
) -> Caption:
    """Tokenize the caption as the model's own answer, together with the prompt before it.

    A token belongs to the phrases whose characters it covers; a space at either end of a phrase
    is not one of them. Tokens beyond `limit` are cut off: after the last phrase they cannot
    change its attention.

    Args:
        processor: The model's.
        prefix: The image and the prompt.
        segments: The caption in pieces.
        controls: The strings that would be read as control tokens.
        limit: The most tokens that the language model can take, those of the prefix included.
        name: Names the sample in messages.

    Raises:
        UsageError: A phrase is empty, has no tokens or exceeds the limit, the phrases are not
            numbered 0..P-1, or the prefix exceeds the limit.
        WeightsError: The chat template changes the caption or the prompt, or the tokenizer cannot
            say which characters a token covers.
    """
    texts = _phrase_texts(segments, len(prefix), limit, name)
    caption, owners, origins = _owned(segments, controls)
    if not caption:
        return Caption(len(prefix), torch.zeros(0, dtype=torch.int64), ())
    before: tuple[int, ...] = () if prefix.apart else prefix.text_ids
    text, begin = (caption, 0) if prefix.apart else answer_text(processor, prefix.turns, caption)
    tokenizer = processor.tokenizer
    encoded = tokenizer(
        text,
        add_special_tokens=not prefix.apart and adds_special_tokens(tokenizer, text),
        return_offsets_mapping=True,
    )
    ids, offsets = encoded["input_ids"], encoded["offset_mapping"]
    same = common_length(ids, before)
    merged = len(before) - same
    if before and merged >= prefix.tail:
        problem = "The model's chat template shows the prompt differently once it is answered."
        if not prefix.tail:
            problem = "The model's processor writes something between the prompt and the answer."
        raise WeightsError(
            problem,
            found=f"Before the caption: ...{text[max(0, begin - 60) : begin]!r}.",
            repair="With --caption-mode pieces the caption is tokenized apart from the prompt.",
        )
    start = len(prefix) - merged
    rows: list[list[int]] = [[] for _ in texts]
    covers: list[tuple[int, int]] = []
    for place, (first, last) in enumerate(offsets[same:], start):
        span = slice(max(0, first - begin), max(0, last - begin))
        covered = owners[span]
        at = origins[span] or [origins[min(span.start, len(origins) - 1)]]
        covers.append((at[0], at[-1] + bool(origins[span])))
        for phrase in dict.fromkeys(owner for owner in covered if owner is not None):
            rows[phrase].append(place)
    _check_rows(texts, rows, limit, name)
    phrase_rows = tuple(torch.tensor(places, dtype=torch.int64) for places in rows)
    kept = torch.tensor(ids[same:][: limit - start], dtype=torch.int64)
    return Caption(start, kept, phrase_rows, tuple(covers[: len(kept)]))


def tokenize_pieces(
    tokenizer: Any,
    segments: Sequence[Segment],
    controls: Collection[str],
    start: int,
    limit: int,
    name: str,
) -> Caption:
    """Tokenize each piece alone and concatenate them without separators or special tokens.

    The original F-LMM does so, and heads that were trained with it need it. Args and errors as for
    `tokenize_whole`; `start` is the length of the prefix.
    """
    texts = _phrase_texts(segments, start, limit, name)
    rows: list[list[int]] = [[] for _ in texts]
    ids: list[int] = []
    for piece in pieces_of(segments, "pieces"):
        text = escape(piece.text, controls)
        new = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        if piece.phrase is not None:
            rows[piece.phrase] += range(start + len(ids), start + len(ids) + len(new))
        ids += new
    _check_rows(texts, rows, limit, name)
    phrase_rows = tuple(torch.tensor(places, dtype=torch.int64) for places in rows)
    return Caption(start, torch.tensor(ids[: limit - start], dtype=torch.int64), phrase_rows)


def _owned(
    segments: Sequence[Segment], controls: Collection[str]
) -> tuple[str, list[int | None], list[int]]:
    """The caption without control strings; of each of its characters the phrase, or None, and
    which it is of the caption as it was given.
    """
    text = caption_text(segments)
    owners = [piece.phrase for piece in pieces_of(segments) for _ in piece.text]
    origins = list(range(len(text)))
    for control in controls:
        while (place := text.find(control)) >= 0:
            text = f"{text[: place + 1]} {text[place + 1 :]}"
            for places in (owners, origins):
                places.insert(place + 1, places[place + 1])  # type: ignore[arg-type]
    done = 0
    for _, run in groupby(owners[:]):
        words = text[done : (end := done + len(list(run)))]
        leading, trailing = len(words) - len(words.lstrip()), len(words) - len(words.rstrip())
        owners[done : done + leading] = [None] * leading
        owners[end - trailing : end] = [None] * trailing
        done = end
    return text, owners, origins


def _phrase_texts(segments: Sequence[Segment], start: int, limit: int, name: str) -> list[str]:
    """The words of each phrase."""
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
    for piece in segments:
        if piece.phrase is not None:
            texts[piece.phrase] += piece.text
    return texts


def _check_rows(texts: Sequence[str], rows: Sequence[Sequence[int]], limit: int, name: str) -> None:
    for number, (text, places) in enumerate(zip(texts, rows, strict=True)):
        if not text.strip() or not places:
            problem = "has no tokens" if text.strip() else "is empty"
            raise UsageError(
                f"Phrase {number} of sample '{name}' {problem}.",
                found=f"Its text is {shortened(text)!r}, of {len(places)} tokens.",
                repair="Give it at least one word.",
            )
        if max(places) >= limit:
            raise UsageError(
                f"Phrase {number} ('{shortened(text)}') of sample '{name}' is cut off.",
                found=f"It ends at token {max(places) + 1}; the model's limit is {limit}.",
                repair="Shorten the caption, or split it into several samples.",
            )
