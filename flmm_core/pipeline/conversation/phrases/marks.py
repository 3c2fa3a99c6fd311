"""Phrases that are marked by hand: `the [[red ring]] is small`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from flmm_core.errors import UsageError
from flmm_core.pipeline.conversation.phrases.base import Range, tidied

OPEN, CLOSE = "[[", "]]"
SHOWN = 20
"""Characters of the text on each side of a fault."""


@dataclass(frozen=True)
class Marked:
    """A text without its marks.

    Attributes:
        text: What the VLM reads.
        ranges: The marked phrases in it; empty if nothing was marked.
    """

    text: str
    ranges: list[Range]


def strip_marks(text: str) -> Marked:
    """Take the marks out of a text that a user gives.

    Raises:
        UsageError: A mark is not closed or not opened, stands within another, or holds no words.
    """
    plain, begin, opened = "", 0, -1
    ranges: list[Range] = []
    for mark in re.finditer(r"\[\[|\]\]", text):
        plain += text[begin : mark.start()]
        begin = mark.end()
        if mark[0] == OPEN and opened < 0:
            opened, place = len(plain), mark.start()
        elif mark[0] == OPEN:
            raise _fault(text, mark.start(), f"'{OPEN}' stands within another '{OPEN}'")
        elif opened < 0:
            raise _fault(text, mark.start(), f"'{CLOSE}' closes nothing")
        elif not plain[opened:].strip():
            raise _fault(text, place, "no words are marked")
        else:
            ranges.append((opened, len(plain)))
            opened = -1
    if opened >= 0:
        raise _fault(text, place, f"'{OPEN}' is not closed")
    plain += text[begin:]
    return Marked(plain, tidied(plain, ranges))


def marked_in_answer(text: str) -> list[Range]:
    """What a model has marked in its answer, which stays as it is: ranges within the marks.

    Empty if its marks are not balanced: the user cannot repair them.
    """
    try:
        strip_marks(text)
    except UsageError:
        return []
    found = re.finditer(r"\[\[(.*?)\]\]", text, re.DOTALL)
    return tidied(text, [mark.span(1) for mark in found])


def _fault(text: str, place: int, what: str) -> UsageError:
    before, after = text[max(0, place - SHOWN) : place], text[place : place + SHOWN]
    dots = ["..." if cut else "" for cut in (place > SHOWN, place + SHOWN < len(text))]
    return UsageError(
        f"The marked phrases of the text are not balanced: {what}.",
        found=f"At character {place}: {(dots[0] + before)!r} here {(after + dots[1])!r}.",
        repair=f"Write {OPEN}red ring{CLOSE} around each phrase, one after the other.",
    )
