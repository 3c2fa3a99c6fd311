"""A text as words, and which tokens each of them is made of."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flmm_core.segment import Segment

JOINERS = "'’-‐‑"
"""What joins two letters to one word: "man's", "black-and-white"."""
ALONE = ("CJK", "HIRAGANA", "KATAKANA")
"""Begin the Unicode names of letters that are words by themselves: nothing parts their words."""


@dataclass(frozen=True)
class Word:
    """A word, a mark or a token of a text.

    Attributes:
        text: As it stands in the whole text.
        start: Its first character in the whole text.
        end: The one after its last.
        tokens: The tokens that cover it, as the tokenizer writes them.
    """

    text: str
    start: int
    end: int
    tokens: tuple[str, ...] = field(default=(), compare=False)

    @property
    def names(self) -> bool:
        """Whether it holds a letter or a digit; marks do not."""
        return any(letter.isalnum() for letter in self.text)


def split_words(text: str) -> list[Word]:
    """Words and marks, in order; every character but white space is in one of them."""
    found: list[Word] = []
    place = 0
    while place < len(text):
        end = _word_end(text, place)
        if not text[place].isspace():
            found.append(Word(text[place:end], place, end))
        place = end
    return found


def _word_end(text: str, place: int) -> int:
    """The end of what begins at a place: a word, or a single mark with what modifies it."""
    end = place + 1
    while end < len(text) and _modifies(text[end]):
        end += 1
    if not text[place].isalnum() or _alone(text[place]):
        return end
    while end < len(text):
        after = text[end]
        if after in JOINERS:
            if end + 1 == len(text) or not text[end + 1].isalnum() or _alone(text[end + 1]):
                break
        elif not (after.isalnum() or after == "_" or _modifies(after)) or _alone(after):
            break
        end += 1
    return end


def _modifies(letter: str) -> bool:
    """Whether it is part of the character before it: accents, vowel signs, joiners of emoji."""
    return unicodedata.category(letter)[0] == "M" or letter in "\u200c\u200d"


def _alone(letter: str) -> bool:
    return not letter.isascii() and unicodedata.name(letter, "").startswith(ALONE)


def as_segments(text: str, words: Sequence[Word]) -> list[Segment]:
    """A text as a caption whose phrases are its words."""
    pieces, place = [], 0
    for number, word in enumerate(words):
        if word.start > place:
            pieces.append(Segment(text[place : word.start]))
        pieces.append(Segment(text[word.start : word.end], number))
        place = word.end
    return [*pieces, Segment(text[place:])] if place < len(text) else pieces


def token_words(tokenizer: Any, text: str) -> list[Word]:
    """The tokens of a text, without white space; those that share a character are one.

    The bytes of an emoji or of a rare letter are tokens of one character.
    """
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return merged_ranges(text, offsets["offset_mapping"])


def merged_ranges(text: str, ranges: Sequence[tuple[int, int]]) -> list[Word]:
    """Ranges of characters as words: without white space, those that overlap as one."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if start == end:
            continue
        if found and start < found[-1][1]:
            first, last = found.pop()
            start, end = min(first, start), max(last, end)
        found.append((start, end))
    return [Word(text[start:end], start, end) for start, end in found]
