"""Reads the attention maps of many words, a portion at a time.

A given text is read anew for each portion, up to the last of its words; of an answer the rows are
computed from what was kept while the model wrote. So at most `PORTION` bytes of attention are in
memory however long a text is, and never the attention between all tokens.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from PIL import Image

from flmm_core.errors import RunError
from flmm_core.explain.words import Word, as_segments, merged_ranges, split_words, token_words
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.recorder import Pool
from flmm_core.pipeline.backbone.reply import Reply
from flmm_core.pipeline.types import (
    AttentionMaps,
    BackboneBatch,
    BackboneInputs,
    ImageView,
    Trace,
)

Split = Literal["words", "tokens"]

PORTION = 256 << 20
"""Most bytes of recorded attention at a time; a single word may take more."""
REFERENCES = 16
"""Most tokens of the prompt whose maps are read beside those of the words."""


class Portion(NamedTuple):
    """Maps (P, C, h, w) of some words, and what a head reads of the same ones."""

    mean: AttentionMaps  # of a word's tokens
    for_head: AttentionMaps  # pooled as by the head's observer, with its `ends`


@dataclass(frozen=True, eq=False)
class Reading:
    """A text about an image.

    Attributes:
        text: As the model reads or wrote it.
        words: In order.
        rows: How many maps each channel has: one a word, then one each of some tokens of the
            prompt, where they are known.
        cells: Of the views of the image, each.
        portions: The maps of all rows in order, some at a time; they are read while it is
            iterated, once.
    """

    text: str
    words: tuple[Word, ...]
    rows: int
    cells: tuple[int, ...]
    portions: Iterator[Portion]


def read_text(
    backbone: Backbone,
    image: Image.Image,
    text: str,
    prompt: str | None,
    split: Split,
    pool: Pool = "mean",
    ends: int = 0,
) -> Reading:
    """A given text, read as the model's own answer.

    `pool` and `ends` are the observer's of a head. Raises as `Backbone.prepare`.
    """
    preparing = backbone
    if backbone.caption_mode != "whole":  # words in pieces are no text that a model would write
        preparing = copy.copy(backbone)  # as it goes to a DataLoader worker: it can only prepare
        preparing.caption_mode = "whole"
        preparing.rendered_prompt()  # raises
    words = token_words(backbone.tokenizer, text) if split == "tokens" else split_words(text)
    inputs = preparing.prepare(image, as_segments(text, words), prompt=prompt, name="text")
    ids = inputs.tokens["input_ids"]
    named = [
        _named(backbone, word, ids[rows].tolist())
        for word, rows in zip(words, inputs.phrase_rows, strict=True)
    ]
    last = max(int(view.token_index.max()) for view in inputs.views)
    behind = torch.arange(last + 1, inputs.start)  # these tokens have seen the image, not the text
    if len(behind) > REFERENCES:
        behind = behind[torch.linspace(0, len(behind) - 1, REFERENCES).round().long()]
    rows = (*inputs.phrase_rows, *behind[:, None])
    portions = _of_text(backbone, replace(inputs, phrase_rows=rows), pool, ends)
    return Reading(text, tuple(named), len(rows), _cells(inputs.views), portions)


def read_reply(
    backbone: Backbone,
    reply: Reply,
    image: int,
    split: Split,
    pool: Pool = "mean",
    ends: int = 0,
) -> Reading:
    """What the model wrote, by the rows that it was written with.

    `pool` and `ends` are the observer's of a head.

    Raises:
        RunError: It wrote nothing.
    """
    words = split_words(reply.text)
    if split == "tokens":
        words = merged_ranges(reply.text, reply.offsets)
    if not words:
        raise RunError(
            "The model's answer has no words.",
            found=f"It answered {reply.text!r}.",
            repair="Ask something else, or explain a given text.",
        )
    given = len(reply.offsets) - len(reply.token_ids)  # tokens that the answer was begun with
    named = []
    for word in words:
        places = (reply.tokens_of(word.start, word.end) - reply.first - given).tolist()
        ids = [int(reply.token_ids[place]) for place in places if place >= 0]
        named.append(_named(backbone, word, ids))
    portions = _of_reply(backbone, reply, image, words, pool, ends)
    views = reply.images[image].views
    return Reading(reply.text, tuple(named), len(words), _cells(views), portions)


def _named(backbone: Backbone, word: Word, ids: Sequence[int]) -> Word:
    tokens = backbone.tokenizer.convert_ids_to_tokens(ids)
    return replace(word, tokens=tuple(map(str, tokens)))


def _cells(views: Sequence[ImageView]) -> tuple[int, ...]:
    return tuple(view.token_index.numel() for view in views)


def _at_once(backbone: Backbone, views: Sequence[ImageView], pool: Pool, ends: int) -> int:
    """How many rows are a portion."""
    copies = 1 + ends + (pool != "mean")
    each = backbone.num_layers * backbone.num_heads * sum(_cells(views)) * 4 * copies
    return max(1, PORTION // each)


def _portion(trace: Callable[..., Trace], pool: Pool, ends: int) -> Portion:
    """`trace` takes `pool` and `ends`, as `Backbone.trace` does."""
    # a plugin's own `trace` may not know what it is not asked for
    mean = attention_maps(trace(ends=ends) if ends else trace())
    return Portion(mean, mean if pool == "mean" else attention_maps(trace(pool=pool)))


@torch.no_grad()
def _of_text(
    backbone: Backbone, inputs: BackboneInputs, pool: Pool, ends: int
) -> Iterator[Portion]:
    count = _at_once(backbone, inputs.views, pool, ends)
    even = [1 / backbone.num_layers] * backbone.num_layers  # hidden states are not needed
    for start in range(0, len(inputs.phrase_rows), count):
        rows = inputs.phrase_rows[start : start + count]
        end = max(int(row.max()) for row in rows) + 1
        cut = replace(inputs, caption=inputs.caption[: max(0, end - inputs.start)])
        batch = backbone.collate([replace(cut, phrase_rows=rows)])

        def trace(batch: BackboneBatch = batch, **how: Any) -> Trace:
            return backbone.trace(batch, layer_weights=even, **how)[0]

        yield _portion(trace, pool, ends)


@torch.no_grad()
def _of_reply(
    backbone: Backbone, reply: Reply, image: int, words: Sequence[Word], pool: Pool, ends: int
) -> Iterator[Portion]:
    count = _at_once(backbone, reply.images[image].views, pool, ends)
    for start in range(0, len(words), count):
        ranges = [(word.start, word.end) for word in words[start : start + count]]
        yield _portion(functools.partial(reply.trace, ranges, image), pool, ends)
