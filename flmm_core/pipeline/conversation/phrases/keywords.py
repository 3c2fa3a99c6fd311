"""`keywords`: what the head's keyword selector chooses, trained with it on narrations. No torch."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from flmm_core.errors import UsageError
from flmm_core.pipeline.conversation.phrases.base import PhraseContext, PhraseFinder, Range
from flmm_core.pipeline.conversation.phrases.lookup import is_unspaced

if TYPE_CHECKING:
    from torch import Tensor

THRESHOLD = 0.5
"""Probability from which a word begins or continues a phrase, unless another is given."""

TRAIN = (
    "Train one for it: flmm train --init-head HEAD --head-keywords --train keywords with --data of"
    " narrations, for example shapes@narrated or png:PATH@train."
)
_WORD = re.compile(r"\w[\w\u0300-\u036f]*(?:['’\-‐‑]\w[\w\u0300-\u036f]*)*")


class KeywordFinder(PhraseFinder):
    """Reads the hidden states of the text's tokens."""

    needs_hidden = True

    def check(self, context: PhraseContext) -> None:
        if context.head is None or context.head.keywords is None:
            raise UsageError(
                "The head has no keyword selector.",
                found="phrases='keywords' (--phrases keywords) needs one.",
                repair=TRAIN,
            )

    def find(self, text: str, context: PhraseContext) -> Iterable[Range]:
        self.check(context)
        if context.hidden is None:
            raise UsageError(
                "The hidden states of the text are not known.",
                found="phrases='keywords' (--phrases keywords) reads them.",
                repair="Choose phrases in an answer (`Grounder.chat`), or give another finder.",
            )
        assert context.head is not None
        assert context.head.keywords is not None
        logits = context.head.keywords(context.hidden.detach()).detach()
        return selected(text, logits, context.offsets, self.options.threshold)


def words_of(text: str) -> list[Range]:
    """The words of a text; of scripts that do not part them, the letters."""
    found: list[Range] = []
    for word in _WORD.finditer(text):
        start, end = word.span()
        if any(map(is_unspaced, word[0])):
            found += ((place, place + 1) for place in range(start, end))
        else:
            found.append((start, end))
    return found


def selected(
    text: str, logits: Tensor, offsets: Sequence[Range], threshold: float = THRESHOLD
) -> list[Range]:
    """The phrases of a text by the logits of its tokens, whole words each.

    A phrase begins at a word that is likely to begin one, and goes on with the words that are
    likely to be in one, begin none and are parted by nothing but spaces.

    Args:
        logits: (T, 2) as in `KeywordLogits`; `offsets` are those of the same tokens.
        threshold: The probability, 0 to 1, from which something is likely.
    """
    likely = logits.sigmoid().tolist()
    tokens = [
        (end - len(text[start:end].lstrip()), end, *both)
        for (start, end), both in zip(offsets, likely, strict=True)
        if text[start:end].strip()
    ]
    found: list[Range] = []
    open_at = -1  # where the phrase that the word before is in has ended so far
    for start, end in words_of(text):
        over = [token for token in tokens if token[0] < end and token[1] > start]
        begins = max((token[2] for token in over if token[0] >= start), default=0.0)
        inside = sum(token[3] for token in over) / max(1, len(over))
        if begins >= threshold:
            found.append((start, end))
            open_at = end
        elif open_at >= 0 and inside >= threshold and not text[open_at:start].strip():
            found[-1] = found[-1][0], end
            open_at = end
        else:
            open_at = -1
    return found
