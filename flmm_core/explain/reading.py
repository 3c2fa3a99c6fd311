"""Reads the attention maps of many words, a portion at a time.

Each portion is one forward that ends behind its last word, so at most `PORTION` bytes of attention
are in memory however long a text is, and never the attention between all tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from PIL import Image

from flmm_core.explain.words import (
    Word,
    as_segments,
    decoded,
    merged_ranges,
    rows_of,
    split_words,
    token_words,
)
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.types import AttentionMaps, BackboneInputs
from flmm_core.segment import Segment

Split = Literal["words", "tokens"]

PORTION = 256 << 20
"""Most bytes of recorded attention at a time; a single word may take more."""
REFERENCES = 16
"""Most tokens of the prompt whose maps are read beside those of the words."""


@dataclass(frozen=True)
class Reading:
    """A text after an image and a prompt.

    Attributes:
        text: As the model reads or wrote it.
        words: In order.
        inputs: Its `phrase_rows` are those of the words, then each of some tokens of the prompt.
    """

    text: str
    words: tuple[Word, ...]
    inputs: BackboneInputs


def read_text(
    backbone: Backbone, image: Image.Image, text: str, prompt: str | None, split: Split
) -> Reading:
    """A given text, read as the model's own answer; raises as `Backbone.prepare`."""
    if backbone.caption_mode != "whole":  # words in pieces are no text that a model would write
        backbone = copy.copy(backbone)  # as it goes to a DataLoader worker: it can only prepare
        backbone.caption_mode = "whole"
        backbone.rendered_prompt()  # raises
    words = token_words(backbone.tokenizer, text) if split == "tokens" else split_words(text)
    inputs = backbone.prepare(image, as_segments(text, words), prompt=prompt, name="text")
    return _reading(backbone, text, words, inputs)


def read_ids(
    backbone: Backbone, image: Image.Image, ids: Sequence[int], prompt: str | None, split: Split
) -> Reading:
    """Exactly the tokens that a model wrote after a prompt; raises as `Backbone.prepare`."""
    text, ranges = decoded(backbone.tokenizer, ids)
    words = merged_ranges(text, ranges) if split == "tokens" else split_words(text)
    inputs = backbone.prepare(image, [Segment("a", 0)], prompt=prompt, name="answer")
    start = len(inputs.prefix)
    rows = [[start + place for place in places] for places in rows_of(words, ranges)]
    inputs = replace(
        inputs,
        start=start,
        caption=torch.tensor(ids, dtype=torch.int64),
        phrase_rows=tuple(torch.tensor(places, dtype=torch.int64) for places in rows),
    )
    return _reading(backbone, text, words, inputs)


def _reading(
    backbone: Backbone, text: str, words: Sequence[Word], inputs: BackboneInputs
) -> Reading:
    ids = inputs.tokens["input_ids"]
    named = []
    for word, rows in zip(words, inputs.phrase_rows, strict=True):
        tokens = backbone.tokenizer.convert_ids_to_tokens(ids[rows].tolist())
        named.append(replace(word, tokens=tuple(map(str, tokens))))
    last = max(int(view.token_index.max()) for view in inputs.views)
    behind = torch.arange(last + 1, inputs.start)  # these tokens have seen the image, not the text
    if len(behind) > REFERENCES:
        behind = behind[torch.linspace(0, len(behind) - 1, REFERENCES).round().long()]
    every = (*inputs.phrase_rows, *behind[:, None])
    return Reading(text, tuple(named), replace(inputs, phrase_rows=every))


@torch.no_grad()
def portions(backbone: Backbone, inputs: BackboneInputs) -> Iterator[AttentionMaps]:
    """The maps of all phrases, in order: (P, C, h, w), for a portion of P at a time."""
    cells = sum(view.token_index.numel() for view in inputs.views)
    each = backbone.num_layers * backbone.num_heads * cells * 4
    count = max(1, PORTION // each)
    even = [1 / backbone.num_layers] * backbone.num_layers  # hidden states are not needed
    for start in range(0, len(inputs.phrase_rows), count):
        rows = inputs.phrase_rows[start : start + count]
        end = max(int(row.max()) for row in rows) + 1
        cut = replace(inputs, caption=inputs.caption[: max(0, end - inputs.start)])
        batch = backbone.collate([replace(cut, phrase_rows=rows)])
        (trace,) = backbone.trace(batch, layer_weights=even)
        yield attention_maps(trace)
