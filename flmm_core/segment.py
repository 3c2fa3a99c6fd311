"""The caption in pieces: what data readers write and backbones read. Loads no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

CaptionMode = Literal["whole", "pieces"]
"""How a caption becomes tokens: whole, as the model's own answer, or each of its pieces alone."""


def is_text(text: str) -> bool:
    """Whether a string can be written and tokenized.

    Strings of JSON, and names of files that are not UTF-8, can hold halves of surrogate pairs.
    """
    return text.isascii() or not any("\ud800" <= letter <= "\udfff" for letter in text)


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the caption; the pieces are joined in order with nothing between them.

    Attributes:
        text: The words.
        phrase: Which mask this piece names (0-based), or None. Several pieces may name one.
        only: The mode in which this piece is read, if it is not read in both. The original F-LMM
            joins pieces without the spaces and punctuation that a whole caption needs.
    """

    text: str
    phrase: int | None = None
    only: CaptionMode | None = None


def pieces_of(segments: Iterable[Segment], mode: CaptionMode = "whole") -> list[Segment]:
    """The pieces that are read in a mode."""
    return [piece for piece in segments if piece.only in (None, mode)]


def caption_text(segments: Iterable[Segment]) -> str:
    """The whole caption."""
    return "".join(piece.text for piece in pieces_of(segments))


def statements(phrases: Sequence[str]) -> list[Segment]:
    """Phrases as one caption, each ended by a period if it has no end: "a cat. where is it?".

    The last one does without if it ends in a mark that a tokenizer may merge with the period:
    what follows the last phrase changes nothing.
    """
    caption: list[Segment] = []
    for number, phrase in enumerate(phrases):
        last, end = number == len(phrases) - 1, phrase.rstrip()[-1:]
        bare = end in ".!?。！？" or (last and not end.isalnum())
        caption += [Segment(" ", only="whole")] if number else []
        caption += [Segment(phrase, number), Segment(".", only="pieces" if bare else None)]
    return caption
