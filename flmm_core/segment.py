"""The caption in pieces: what data readers write and backbones read. Loads no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Segment:
    """A piece of the caption; the pieces are joined in order with nothing between them.

    Attributes:
        text: The words.
        phrase: Which mask this piece names (0-based), or None. Several pieces may name one.
    """

    text: str
    phrase: int | None = None
