"""What the VLM wrote, and what its words attended to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.pipeline.backbone.following import Following
from flmm_core.pipeline.backbone.recorder import Pool
from flmm_core.pipeline.backbone.rows import split_ends
from flmm_core.pipeline.types import ImageView, Trace

Range = tuple[int, int]


@dataclass(frozen=True, eq=False)
class SeenImage:
    """An image of a conversation and where its tokens are in the sequence."""

    image: Image.Image
    views: tuple[ImageView, ...]


@dataclass(frozen=True, eq=False)
class Reply:
    """What the VLM wrote.

    Attributes:
        text: The answer without spaces around it; with the beginning that it was given, if any.
        token_ids: (T,) int64 on the CPU, the new tokens, as transformers' `generate` returns them.
        messages: The conversation with the answer.
        images: Those of the conversation.
        offsets: Per token of the answer, its characters of `text`; for tokens that show none,
            start = end.
        first: The position in the sequence of the answer's first token.
        prompt_tokens: How many tokens the model read before it wrote.
        rows: What attention is computed from; None if nothing was recorded.
    """

    text: str
    token_ids: Tensor
    messages: list[dict[str, Any]]
    images: tuple[SeenImage, ...]
    offsets: tuple[Range, ...]
    first: int
    prompt_tokens: int
    rows: Following | None

    def trace(
        self, phrases: Sequence[Range], image: int = 0, pool: Pool = "mean", ends: int = 0
    ) -> Trace:
        """What `Backbone.trace` gives for phrases of the answer, as ranges of its characters.

        Raises:
            UsageError: No token covers a phrase.
        """
        assert self.rows is not None
        seen = self.images[image]
        rows = [self.tokens_of(*phrase) for phrase in phrases]
        columns = torch.cat([view.token_index.flatten() for view in seen.views])  # (M,)
        lengths = torch.tensor([len(each) for each in rows], dtype=torch.int64)
        hidden = self.rows.hidden(torch.cat([torch.zeros(0, dtype=torch.int64), *rows]))
        attention = self.rows.attention(rows, columns, pool, ends)
        mean, last = split_ends(attention, len(rows))
        return Trace(
            attention=mean,
            hidden=hidden,
            row_phrase=torch.arange(len(rows)).repeat_interleave(lengths).to(hidden.device),
            views=seen.views,
            image_hw=(seen.image.height, seen.image.width),
            ends=last,
        )

    def tokens_of(self, start: int, end: int) -> Tensor:
        """(T_p,) positions in the sequence of the tokens that cover some characters of the text."""
        found = [
            self.first + place
            for place, (begin, stop) in enumerate(self.offsets)
            if max(begin, start) < min(stop, end)
        ]
        if not found:
            raise UsageError(
                f"The characters {start} to {end} of the answer are no phrase.",
                found=f"The answer has {len(self.text)} characters.",
                repair="Give ranges (start, end) with start < end.",
            )
        return torch.tensor(found, dtype=torch.int64)

    def hidden(self) -> Tensor:
        """(L, T', D) hidden states of the first T' tokens of `offsets`: those that were run.

        An end token that was generated last never was, and shows no text.
        """
        assert self.rows is not None
        count = min(len(self.offsets), len(self.rows))
        return self.rows.hidden(self.first + torch.arange(count))
