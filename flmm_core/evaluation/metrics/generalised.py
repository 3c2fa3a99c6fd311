"""Scores of expressions that may mean several things or none (gRefCOCO).

The definitions are those of GRES (Liu, Ding and Jiang, CVPR 2023, arXiv 2306.00968, "Metrics").
"No target" is the positive class: a sample without target that is answered with "none" is a true
positive (TP), one answered with a mask a false negative (FN); a sample with targets that is
answered with a mask is a true negative (TN), one answered with "none" a false positive (FP).

    N-acc  TP / (TP + FN), the share of samples without target that are recognised
    T-acc  TN / (TN + FP), the share of samples with targets that are answered
    gIoU   the mean over all samples: 1 for TP, 0 for FN and FP, the mask's IoU for TN
    cIoU   intersections over unions, summed over all samples; TP adds nothing, FN adds the
           wrongly predicted pixels to the unions, FP adds no intersection but its union
    precision@t  the share of samples with targets whose IoU reaches t, FP being a miss

The pixel rules are those of the official evaluation (`refer_evaluation.py` of ReLA, 2023). For
N-acc and T-acc that script divides TP by (TP + FN + 1) and by (TP + FP + 1); here they are the
paper's, which are also what its tables mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Self

from flmm_core.evaluation.metrics.masks import Counts, intersection_union, pixels, same_length
from flmm_core.evaluation.metrics.sums import THRESHOLDS, IouSums, or_null, reached, share


@dataclass
class GeneralisedScores(IouSums):
    """Running sums over samples, an expression with all its targets in one mask each.

    Attributes:
        true_none: No target, answered with "none" (TP).
        missed_none: No target, answered with a mask (FN).
        answered: Targets, answered with a mask (TN).
        false_none: Targets, answered with "none" (FP).
        hits: How many samples with targets reach each of `THRESHOLDS`.
    """

    true_none: int = 0
    missed_none: int = 0
    answered: int = 0
    false_none: int = 0
    hits: list[int] = field(default_factory=lambda: [0] * len(THRESHOLDS))

    def add(
        self,
        pred: Any,
        truth: Any,
        *,
        no_target: Sequence[bool] | None = None,
        says_none: Sequence[bool] | None = None,
    ) -> None:
        """Count samples.

        Args:
            pred: (P, H, W) bool, one mask a sample: the union of all that was found.
            truth: (P, H, W) bool, the union of all targets.
            no_target: (P,) whether the sample has no target; by default, whether its truth is
                empty.
            says_none: (P,) whether the answer is "none"; by default, whether its mask is empty,
                as the paper has it. Give it for a flow that decides apart from the mask.
        """
        intersection, union = intersection_union(pred, truth)
        true_pixels = pixels(truth)
        if no_target is None:
            no_target = [not count for count in true_pixels]
        elif any(none and count for none, count in zip(no_target, true_pixels, strict=True)):
            raise ValueError("a sample without target has pixels in its truth")
        if says_none is None:
            says_none = [not count for count in pixels(pred)]
        self.add_counts(intersection, union, no_target=no_target, says_none=says_none)

    def add_counts(
        self,
        intersections: Sequence[int] | Counts,
        unions: Sequence[int] | Counts,
        *,
        no_target: Sequence[bool],
        says_none: Sequence[bool],
    ) -> None:
        """Count samples by their masks' pixel counts and what is said and true of "none".

        The pixels are those of the mask as it is, even where the answer is "none".
        """
        same_length(
            intersections=intersections, unions=unions, no_target=no_target, says_none=says_none
        )
        rows = zip(intersections, unions, no_target, says_none, strict=True)
        for intersection, union, none_true, none_said in rows:
            self._add(int(intersection), int(union), bool(none_true), bool(none_said))

    def _add(self, intersection: int, union: int, none_true: bool, none_said: bool) -> None:
        if none_true:
            if intersection:
                raise ValueError(f"an intersection of {intersection} without a target")
            self._count(0, 0 if none_said else union, nothing=none_said)
            self.true_none += none_said
            self.missed_none += not none_said
        else:
            intersection = 0 if none_said else intersection
            self._count(intersection, union)
            self.false_none += none_said
            self.answered += not none_said
            for place, hit in enumerate(reached(intersection, union)):
                self.hits[place] += hit

    def merge(self, other: Self) -> None:
        """Add what another process has counted."""
        super().merge(other)
        self.true_none += other.true_none
        self.missed_none += other.missed_none
        self.answered += other.answered
        self.false_none += other.false_none
        self.hits = [mine + more for mine, more in zip(self.hits, other.hits, strict=True)]

    @property
    def giou(self) -> float:
        """Mean over samples, a recognised "none" counting 1; nan without samples."""
        return self.miou

    @property
    def n_acc(self) -> float:
        """Share of the samples without target that are answered with "none"; nan without any."""
        return share(self.true_none, self.true_none + self.missed_none)

    @property
    def t_acc(self) -> float:
        """Share of the samples with targets that are answered with a mask; nan without any."""
        return share(self.answered, self.answered + self.false_none)

    def precision_at(self, threshold: float) -> float:
        """Share of the samples with targets with IoU >= threshold; nan without any."""
        if threshold not in THRESHOLDS:
            raise ValueError(f"threshold {threshold} is not one of {THRESHOLDS}")
        place = THRESHOLDS.index(threshold)
        return share(self.hits[place], self.answered + self.false_none)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, by the field's names; null where there is nothing to score."""
        scores = {"giou": self.giou, "ciou": self.ciou, "n_acc": self.n_acc, "t_acc": self.t_acc}
        scores |= {f"precision@{t}": self.precision_at(t) for t in THRESHOLDS}
        no_target = self.true_none + self.missed_none
        return {name: or_null(score) for name, score in scores.items()} | {
            **self._pixels(),
            "no_target": no_target,
            "targets": self.masks - no_target,
        }
