"""How well the words to ground are chosen: F1 on narrations, beside that of `rules`. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from flmm_core.data.sample import Sample, Segment, pieces_of
from flmm_core.pipeline.conversation.phrases.base import Range, tidied
from flmm_core.pipeline.conversation.phrases.keywords import THRESHOLD, selected, words_of
from flmm_core.pipeline.conversation.phrases.rules import noun_phrases

if TYPE_CHECKING:
    from flmm_core.pipeline.types import KeywordLogits


@dataclass
class Matches:
    """Of what was chosen and what was annotated: how many, and how many are in both."""

    right: int = 0
    chosen: int = 0
    annotated: int = 0

    def add(self, chosen: Iterable[object], annotated: Iterable[object]) -> None:
        """Count those of one caption."""
        one, other = set(chosen), set(annotated)
        self.right += len(one & other)
        self.chosen += len(one)
        self.annotated += len(other)

    def merge(self, other: Matches) -> None:
        """Count those of other captions."""
        self.right += other.right
        self.chosen += other.chosen
        self.annotated += other.annotated

    @property
    def precision(self) -> float:
        """0 if nothing was chosen."""
        return self.right / max(1, self.chosen)

    @property
    def recall(self) -> float:
        """0 if nothing was annotated."""
        return self.right / max(1, self.annotated)

    @property
    def f1(self) -> float:
        """2 right / (chosen + annotated): the harmonic mean of precision and recall."""
        return 2 * self.right / max(1, self.chosen + self.annotated)


@dataclass
class KeywordScores:
    """Over the narrations of a source: exact phrases, their words, and exact phrases by `rules`."""

    captions: int = 0
    phrases: Matches = field(default_factory=Matches)
    words: Matches = field(default_factory=Matches)
    rules: Matches = field(default_factory=Matches)

    def add(self, sample: Sample, logits: KeywordLogits) -> None:
        """Count one narration."""
        text, annotated = sample.caption, annotated_phrases(sample.segments)
        chosen = selected(text, logits.logits, logits.offsets, THRESHOLD)
        words = words_of(text)
        self.captions += 1
        self.phrases.add(chosen, annotated)
        self.words.add(_within(words, chosen), _within(words, annotated))
        self.rules.add(tidied(text, noun_phrases(text)), annotated)

    def merge(self, other: KeywordScores) -> None:
        """Count other narrations."""
        self.captions += other.captions
        self.phrases.merge(other.phrases)
        self.words.merge(other.words)
        self.rules.merge(other.rules)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, fractions of 1."""
        return {
            "captions": self.captions,
            "f1": self.phrases.f1,
            "precision": self.phrases.precision,
            "recall": self.phrases.recall,
            "word_f1": self.words.f1,
            "rules_f1": self.rules.f1,
            "threshold": THRESHOLD,
        }


def annotated_phrases(segments: Sequence[Segment]) -> list[Range]:
    """The phrases of a caption as ranges of its characters; neighboring pieces of one are one."""
    ranges: list[Range] = []
    place, last, text = 0, None, ""
    for piece in pieces_of(segments):
        end = place + len(piece.text)
        if piece.phrase is not None and piece.phrase == last:
            ranges[-1] = ranges[-1][0], end
        elif piece.phrase is not None:
            ranges.append((place, end))
        place, last, text = end, piece.phrase, text + piece.text
    return tidied(text, ranges)


def _within(words: Sequence[Range], ranges: Sequence[Range]) -> list[Range]:
    return [w for w in words if any(start <= w[0] and w[1] <= end for start, end in ranges)]
