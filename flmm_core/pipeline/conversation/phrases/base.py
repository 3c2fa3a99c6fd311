"""What a phrase finder is given and what it returns. No torch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from flmm_core.pipeline.backbone.base import Backbone
    from flmm_core.pipeline.head import Head

Range = tuple[int, int]
"""(start, end) of characters, end exclusive."""


@dataclass(frozen=True, eq=False)
class PhraseContext:
    """What is known of a text beside its characters; each part may be missing.

    Attributes:
        images: What the conversation is about; at least one if the text is an answer.
        backbone: The VLM that wrote or read the text.
        head: The trained half of the flow.
        offsets: (start, end) of the characters of the text that each of its T tokens covers; for
            tokens that cover none, start = end.
        hidden: (L, T, D) hidden states of these tokens as the VLM read them after the image and
            all that came before, after each layer, the last after the final norm.
    """

    images: Sequence[Image.Image] = ()
    backbone: Backbone | None = None
    head: Head | None = None
    offsets: Sequence[Range] = ()
    hidden: Tensor | None = None


class PhraseFinder(ABC):
    """Chooses the words of a text to ground.

    Attributes:
        needs_hidden: Whether `find` reads `PhraseContext.hidden`.
    """

    needs_hidden: bool = False

    def __init__(self, options: Any) -> None:
        """Load what is needed; `options` is an instance of the class that the spec names.

        Raises:
            MissingExtraError: A package or its data are not installed.
        """
        self.options = options

    def check(self, context: PhraseContext) -> None:  # noqa: B027
        """Refuse a context without what `find` needs, before a text is written.

        Raises:
            UsageError: Such as a head that was not trained for it.
        """

    @abstractmethod
    def find(self, text: str, context: PhraseContext) -> Iterable[Range]:
        """The phrases of a text, as ranges of its characters.

        `tidied` is applied to them: they may come in any order, overlap, and begin or end with
        spaces.
        """


def tidied(text: str, ranges: Iterable[Range]) -> list[Range]:
    """Ranges in order, without overlaps, edge spaces, empty ones, or what lies outside the text.

    Of two that overlap, the one that begins first is kept, or else the longer one.
    """
    kept: list[Range] = []
    trimmed = (_trimmed(text, start, end) for start, end in ranges)
    for start, end in sorted(trimmed, key=lambda one: (one[0], -one[1])):
        if start < end and (not kept or start >= kept[-1][1]):
            kept.append((start, end))
    return kept


def _trimmed(text: str, start: int, end: int) -> Range:
    start, end = max(0, int(start)), min(len(text), int(end))
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end
