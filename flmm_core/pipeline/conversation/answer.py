"""What `Grounder.chat` gives: the model's text, and masks of the phrases in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.pipeline.result import Result


@dataclass(frozen=True, eq=False, repr=False)
class Span:
    """A phrase of an answer and what it names.

    Attributes:
        phrase: The words.
        start: The first of its characters in the answer's text; `end` is behind the last.
        image: The number of the image that it was found in: of several the one whose mask is most
            probable.
        result: The masks of that image; the phrase is its `number`th.
    """

    phrase: str
    start: int
    end: int
    image: int
    result: Result = field(compare=False)
    number: int

    @property
    def mask(self) -> Tensor:
        """(H, W) bool; empty if the phrase is not there."""
        return self.result.mask(self.number)

    @property
    def score(self) -> float:
        """Mean probability over the mask's pixels; 0 for an empty mask."""
        return float(self.result.scores[self.number])

    @property
    def probability(self) -> float | None:
        """How likely the mask is right; None from a head that does not tell."""
        value = float(self.result.probabilities[self.number])
        return None if value != value else value  # nan

    @property
    def there(self) -> bool:
        """Whether the head does not say that the phrase names nothing in the image."""
        return bool(self.result.there[self.number])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros for an empty mask."""
        x0, y0, x1, y1 = self.result.boxes[self.number].tolist()
        return x0, y0, x1, y1

    def attention(self) -> Tensor:
        """(H, W) float32 that sum to 1: where the phrase's words look, the mean of all heads."""
        return self.result.attention(self.number)

    def to_record(self) -> dict[str, Any]:
        """As `Result.to_coco`, with `start`, `end` and `image`."""
        record = self.result.to_coco()[self.number]
        return {
            "phrase": self.phrase,
            "start": self.start,
            "end": self.end,
            "image": self.image,
            **record,
        }

    def __repr__(self) -> str:
        return (
            f"Span({self.phrase!r}, {self.start}:{self.end}, score={self.score:.2f}, "
            f"box={self.box}{'' if self.there else ', not there'})"
        )


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
        """One flat record a span, as JSON and pandas take it; see `Span.to_record`."""
        return [span.to_record() for span in self.spans]

    def __repr__(self) -> str:
        return f"Answer({self.text!r}, {len(self.spans)} spans)"
