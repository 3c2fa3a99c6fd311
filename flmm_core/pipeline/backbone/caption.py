"""The caption's pieces -> token ids, and which of them belong to which phrase."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.segment import Segment


@dataclass(frozen=True)
class Caption:
    """A tokenised caption.

    Attributes:
        ids: (n,) int64 token ids, without any special token.
        phrase_rows: Per phrase, (T_p,) int64 places of its tokens in the whole sequence.
        phrases: The words of each phrase.
    """

    ids: Tensor
    phrase_rows: tuple[Tensor, ...]
    phrases: tuple[str, ...]


def tokenise_caption(tokenizer: Any, segments: Sequence[Segment], start: int, name: str) -> Caption:
    """Tokenise each piece alone and join them with nothing between.

    Args:
        tokenizer: The processor's.
        segments: The caption in pieces.
        start: The place of the caption's first token in the sequence.
        name: Names the sample in messages.

    Raises:
        UsageError: A phrase is empty or has no tokens, or the numbers are not 0..P-1.
    """
    numbers = sorted({piece.phrase for piece in segments if piece.phrase is not None})
    if numbers != list(range(len(numbers))):
        raise UsageError(
            f"The phrases of sample '{name}' are not numbered without gaps from 0.",
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
    for number, (text, places) in enumerate(zip(texts, rows, strict=True)):
        if not text.strip() or not places:
            trouble = "has no tokens" if text.strip() else "is empty"
            raise UsageError(
                f"Phrase {number} of sample '{name}' {trouble}.",
                found=f"Its text is {text!r}, of {len(places)} tokens.",
                repair="Give it at least one word.",
            )
    return Caption(
        ids=torch.tensor(ids, dtype=torch.int64),
        phrase_rows=tuple(torch.tensor(places, dtype=torch.int64) for places in rows),
        phrases=tuple(texts),
    )


def fit_to_limit(
    tensors: Mapping[str, Tensor], caption: Caption, limit: int, name: str
) -> dict[str, Tensor]:
    """Prompt and caption as one sequence of at most `limit` tokens.

    Words after the last phrase cannot change what it attends to, so they may be cut off.

    Args:
        tensors: The processor's for the prompt; per-token ones are (S_prompt,).
        caption: What follows the prompt.
        limit: The most tokens that the language model can take.
        name: Names the sample in messages.

    Raises:
        UsageError: The prompt or a phrase lies beyond the limit.
    """
    shape = tensors["input_ids"].shape
    if shape[0] > limit:
        raise UsageError(
            f"The prompt of sample '{name}' is longer than the model can take.",
            found=f"With its image it has {shape[0]} tokens; the limit is {limit}.",
            repair="Shorten the prompt or make the image smaller.",
        )
    for number, places in enumerate(caption.phrase_rows):
        last = int(places.max())
        if last >= limit:
            raise UsageError(
                f"Phrase {number} ('{caption.phrases[number]}') of sample '{name}' is cut off.",
                found=f"It ends at token {last + 1}; the model's limit is {limit} tokens.",
                repair="Shorten the caption, or split it into several samples.",
            )
    # attention_mask goes on with ones; token types go on with 0, which is text
    more = {"input_ids": caption.ids, "attention_mask": torch.ones_like(caption.ids)}
    return {
        key: torch.cat([value, more.get(key, torch.zeros_like(caption.ids)).to(value.dtype)])[
            :limit
        ]
        if value.shape == shape
        else value
        for key, value in tensors.items()
    }
