"""Running sums of all scores, and their JSON. No torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flmm_core.evaluation import scores
from flmm_core.evaluation.keywords import KeywordScores
from flmm_core.evaluation.not_there import Separation
from flmm_core.evaluation.phrase_rows import PhraseRow
from flmm_core.evaluation.reliability import Reliability


@dataclass
class ScoreSums:
    """The sums of each of `SCORES` over some rows: rows that count, numerators, denominators."""

    rows: Counter[str] = field(default_factory=Counter)
    numerators: Counter[str] = field(default_factory=Counter)
    denominators: Counter[str] = field(default_factory=Counter)

    def add(self, terms: Mapping[str, scores.Terms]) -> None:
        """Add the terms of one row."""
        for name, (numerator, denominator) in terms.items():
            self.rows[name] += 1
            self.numerators[name] += numerator
            self.denominators[name] += denominator

    def merge(self, other: ScoreSums) -> None:
        """Add the sums over other rows."""
        self.rows.update(other.rows)
        self.numerators.update(other.numerators)
        self.denominators.update(other.denominators)

    def __getitem__(self, name: str) -> float:
        """A score, correctly rounded; nan if no row counts, 0 if the denominator is 0."""
        if not self.rows[name]:
            return math.nan
        return self.numerators[name] / (self.denominators[name] or 1)

    def group(self, name: str, pixels: str = "") -> dict[str, Any]:
        """One object of the JSON: its scores, null for nan, and the pixels of a cIoU."""
        found: dict[str, Any] = {
            key: self[own] if self.rows[own] else None for key, own in scores.group(name).items()
        }
        if pixels:
            found["masks"] = self.rows[pixels]
            found["intersection"] = self.numerators[pixels]
            found["union"] = self.denominators[pixels]
        return found


@dataclass
class Evaluation:
    """The scores on one source: of all rows, and of those of each slice and tag.

    Attributes:
        reliability: Of the probabilities of masks that were not withheld ("not there").
        keywords: Of narrations, if the head selects keywords.
        separation: Of the probabilities of all phrases, with and without target.
        protocol: That of the captions, which decides what P@t counts.
        with_ignored: Rows with ignored pixels.
        skipped: Number of items that are left out, and `left_out` which, ready for JSON.
        seconds: Wall-clock time.
    """

    whole: ScoreSums = field(default_factory=ScoreSums)
    slices: dict[str, ScoreSums] = field(default_factory=dict)
    tags: dict[str, ScoreSums] = field(default_factory=dict)
    reliability: Reliability = field(default_factory=Reliability)
    separation: Separation = field(default_factory=Separation)
    keywords: KeywordScores = field(default_factory=KeywordScores)
    protocol: str = "standard"
    with_ignored: int = 0
    samples: int = 0
    skipped: int = 0
    left_out: list[dict[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    def add(self, rows: Iterable[PhraseRow], keywords: KeywordScores | None = None) -> None:
        """Count the rows of one sample, and its keywords."""
        self.samples += 1
        if keywords is not None:
            self.keywords.merge(keywords)
        for row in rows:
            terms = scores.terms(row, self.protocol)
            self.whole.add(terms)
            if row.slice:
                self.slices.setdefault(row.slice, ScoreSums()).add(terms)
            for tag in row.tags:
                self.tags.setdefault(tag, ScoreSums()).add(terms)
            if row.probability is not None:
                self.separation.add(row.probability, row.truth > 0)
                if row.there:
                    right = scores.reaches(row.intersection, row.union)
                    self.reliability.add(row.probability, right)
            self.with_ignored += row.ignored > 0

    def merge(self, other: Evaluation) -> None:
        """Count what another process measured of the same source; all sums are exact."""
        self.whole.merge(other.whole)
        for own, more in ((self.slices, other.slices), (self.tags, other.tags)):
            for name, sums in more.items():
                own.setdefault(name, ScoreSums()).merge(sums)
        self.reliability.merge(other.reliability)
        self.separation.merge(other.separation)
        self.keywords.merge(other.keywords)
        self.with_ignored += other.with_ignored
        self.samples += other.samples

    @property
    def phrases(self) -> int:
        """Number of rows."""
        return self.whole.rows["ciou"]

    def __getitem__(self, name: str) -> float:
        """One of `SCORES` over all rows; nan if no row counts."""
        return self.whole[name]

    def to_dict(self) -> dict[str, Any]:
        """The scores ready for JSON, fractions of 1.

        "generalised" (gRefCOCO) is present if some phrases have no target, "reasoning" (ReasonSeg)
        if some pixels are ignored, "recall" (PNG) if rows have tags of its subsets, "calibration"
        if there are probabilities, "keywords" if some captions are narrations and the head selects
        keywords.
        """
        whole = self.whole
        found: dict[str, Any] = {
            "coarse": self._by_slice("coarse", "coarse_ciou"),
            "refined": self._by_slice("refined", "ciou"),
        }
        for name, score in (("box", "box@0.5"), ("point", "point")):
            counts = {"masks": whole.rows[score], "hits": whole.numerators[score]}
            found[name] = whole.group(name) | counts
        if whole.rows["no_target_accuracy"]:
            found["generalised"] = whole.group("generalised", "ciou") | {
                "no_target": whole.rows["no_target_accuracy"],
                "targets": whole.rows["target_accuracy"],
            }
            if not math.isnan(area := self.separation.auroc):
                found["generalised"]["auroc"] = area
        if self.with_ignored:
            found["reasoning"] = whole.group("reasoning", "ciou")
        if whole.rows["average_recall_all"]:
            names = scores.group("recall")
            found["recall"] = {
                "average_recall": whole.group("recall"),
                "masks": {key: whole.rows[name] for key, name in names.items()},
            }
        if self.tags:
            found["tags"] = {
                tag: sums.group("refined", "ciou") for tag, sums in sorted(self.tags.items())
            }
        if any(self.reliability.counts):
            found["calibration"] = self.reliability.to_dict()
        if self.keywords.captions:
            found["keywords"] = self.keywords.to_dict()
        if self.left_out:
            found["left_out"] = self.left_out
        return found | {
            "samples": self.samples,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 1),
        }

    def _by_slice(self, name: str, pixels: str) -> dict[str, Any]:
        found = self.whole.group(name, pixels)
        slices = {
            part: sums.group(name, pixels)
            for part, sums in sorted(self.slices.items())
            if sums.rows[pixels]
        }
        return found | ({"slices": slices} if slices else {})
