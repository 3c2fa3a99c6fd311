"""Where given phrases occur in a text, as whole words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

from flmm_core.errors import UsageError, shortened
from flmm_core.pipeline.conversation.phrases.base import Range, tidied

UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""What the Unicode names of letters begin with whose words are not parted by spaces."""


def occurrences(text: str, phrases: Iterable[str]) -> list[Range]:
    """Every place of every phrase, in any case; of two that overlap, the longer one.

    A phrase matches whole words: "ring" is not in "string". Any white space in it matches any in
    the text.

    Raises:
        UsageError: A phrase is no text, or empty.
    """
    found: list[Range] = []
    for phrase in phrases:
        if not isinstance(phrase, str) or not phrase.strip():
            raise UsageError(
                "A phrase to look up is empty.",
                found=f"Found {shortened(repr(phrase))}.",
                repair="Give strings with at least one word.",
            )
        pattern = r"\s+".join(map(re.escape, phrase.split()))
        found += _whole(text, re.compile(f"(?=({pattern}))", re.IGNORECASE))
    kept: list[Range] = []
    for start, end in sorted(found, key=lambda one: (one[0] - one[1], one[0])):
        if all(end <= other[0] or start >= other[1] for other in kept):
            kept.append((start, end))
    return tidied(text, kept)


def _whole(text: str, pattern: re.Pattern[str]) -> list[Range]:
    spans = (match.span(1) for match in pattern.finditer(text))  # also those that overlap
    return [span for span in spans if all(not _within_word(text, place) for place in span)]


def _within_word(text: str, place: int) -> bool:
    """Whether a place between two characters is inside a word."""
    if not 0 < place < len(text):
        return False
    before, after = text[place - 1], text[place]
    if unicodedata.category(after)[0] == "M":  # an accent belongs to the letter before it
        return True
    if unicodedata.category(before)[0] == "M":
        before = "a"
    return before.isalnum() and after.isalnum() and not (is_unspaced(before) or is_unspaced(after))


def is_unspaced(letter: str) -> bool:
    """Whether a letter is of a script that does not part words by spaces."""
    return unicodedata.name(letter, "").startswith(UNSPACED)
