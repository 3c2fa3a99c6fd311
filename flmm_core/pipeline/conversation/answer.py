"""What `Grounder.chat` gives: the model's text, and masks of the phrases in it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.files import write_json
from flmm_core.pipeline.result import Found, Result
from flmm_core.pipeline.result_files import colored, html_of


@dataclass(frozen=True, eq=False, repr=False)
class Span(Found):
    """A phrase of an answer and what it names.

    Attributes:
        start: The first of its characters in the answer's text; `end` is behind the last.
        image: The number of the image that it was found in: of several the one whose mask is most
            probable.
        result: The masks of that image.
    """

    start: int
    end: int
    image: int

    def to_record(self) -> dict[str, Any]:
        """As in `Result.to_coco`, with `start`, `end` and `image`."""
        where = {"start": self.start, "end": self.end, "image": self.image}
        return {"phrase": self.phrase, **where, **super().to_record()}


@dataclass(frozen=True, eq=False, repr=False)
class Answer(Sequence[Span]):
    """What the model said, and where the things are that it named; a sequence of its spans.

    Attributes:
        text: Without spaces around it; with the beginning that the answer was given, if any.
        token_ids: (T,) int64, the new tokens, as transformers' `generate` returns them.
        spans: In the order of the text, without overlaps.
        results: Per image, the masks of all spans' phrases in it.
        messages: The conversation with the answer, in transformers' chat format, to go on with.
        prompt_tokens: How many tokens the model read before it wrote.
    """

    text: str
    token_ids: Tensor
    spans: tuple[Span, ...]
    results: tuple[Result, ...]
    messages: list[dict[str, Any]]
    prompt_tokens: int

    @property
    def result(self) -> Result:
        """The masks of all spans, for a conversation about one image.

        Raises:
            UsageError: There are several images.
        """
        if len(self.results) > 1:
            raise UsageError(
                "The answer is about several images.",
                found=f"There are {len(self.results)}.",
                repair="Use .results[i]; Span.image says which one a span is in.",
            )
        return self.results[0]

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, number: Any) -> Any:
        return self.spans[number]

    def __iter__(self) -> Iterator[Span]:
        return iter(self.spans)

    def attention(self, number: int) -> Tensor:
        """(H, W) float32 that sum to 1: where a span's words look, the mean of all heads."""
        return self.spans[number].attention()

    def to_records(self) -> list[dict[str, Any]]:
        """One flat row a span, for `pandas.DataFrame`: see `Found.to_row`."""
        return [span.to_row() for span in self]

    def to_json(self) -> dict[str, Any]:
        """Text, conversation and one record a span, as JSON takes them."""
        spans = [span.to_record() for span in self]
        return {"text": self.text, "spans": spans, "messages": self.messages}

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the masks as `flmm ground` does, and answer.json, which `to_json` gives.

        Of several images, those of the second are in the folder `image-2`, and so on.
        """
        target = Path(folder)
        for number, result in enumerate(self.results):
            result.save(target / f"image-{number + 1}" if number else target)
        write_json(target / "answer.json", self.to_json())
        return target

    def _repr_html_(self) -> str:
        done, parts = 0, []
        for number, span in enumerate(self):
            parts += [escape(self.text[done : span.start]), colored(number, span.phrase)]
            done = span.end
        return html_of(self.results, Markup("").join([*parts, escape(self.text[done:])]))

    def __repr__(self) -> str:
        return f"Answer({self.text!r}, {len(self.spans)} spans)"
