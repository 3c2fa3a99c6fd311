"""Average recall of panoptic narrative grounding (PNG).

The definition is that of Panoptic Narrative Grounding (González et al., ICCV 2021, arXiv
2109.04988) and of its evaluation (`average_accuracy` in `meters.py`): recall at t is the share of
masks with IoU >= t, and the average is the left Riemann sum of recall over the thresholds
`np.arange(0, 1, 1e-5)`, the last of which only ends the last interval.

The published loop visits 100,000 thresholds for all masks. Here each mask counts for itself how
many of the first 99,999 thresholds it reaches, by one binary search, and these integers are
added. It is the same sum, read by rows instead of by columns. The thresholds are the published
floats, so an IoU that lies exactly on one falls as it does there. A perfect mask gives 0.99999,
and one with an IoU of 0 gives 0.00001.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flmm_core.evaluation.metrics.masks import Counts, intersection_union, same_length
from flmm_core.evaluation.metrics.sums import or_null, share

SUBSETS = ("all", "thing", "stuff", "singular", "plural")
_STEPS = 100_000


@cache
def _thresholds() -> NDArray[np.float64]:
    """Where the intervals begin, (99,999,)."""
    return np.arange(0, 1, 1 / _STEPS)[:-1]


@dataclass
class RecallScores:
    """Running sums over masks, by subset.

    A phrase that names several segments is plural and always counts as a thing, whatever they
    are; the other phrases are singular and thing or stuff by their segment's category.

    Attributes:
        masks: How many masks each of `SUBSETS` has.
        levels: Sum over masks of the number of thresholds that each reaches, 1 to 99,999.
    """

    masks: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUBSETS, 0))
    levels: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SUBSETS, 0))

    def add(self, pred: Any, truth: Any, things: Sequence[bool], plurals: Sequence[bool]) -> None:
        """Count masks.

        Args:
            pred: (P, H, W) bool.
            truth: (P, H, W) bool, all segments of a phrase in one mask.
            things: (P,) whether the phrase's segment is of a thing's category.
            plurals: (P,) whether the phrase names several segments.
        """
        self.add_counts(*intersection_union(pred, truth), things, plurals)

    def add_counts(
        self,
        intersections: Sequence[int] | Counts,
        unions: Sequence[int] | Counts,
        things: Sequence[bool],
        plurals: Sequence[bool],
    ) -> None:
        """Count masks by their pixel counts; 0/0 has an IoU of 0."""
        same_length(intersections=intersections, unions=unions, things=things, plurals=plurals)
        intersection = np.asarray(intersections, dtype=np.int64)
        union = np.asarray(unions, dtype=np.int64)
        wrong = np.flatnonzero((intersection < 0) | (intersection > union))
        if len(wrong):
            first = int(wrong[0])
            raise ValueError(
                f"an intersection of {intersection[first]} in a union of {union[first]}"
            )
        iou = intersection / np.maximum(union, 1)
        levels = np.searchsorted(_thresholds(), iou, side="right")
        plural = np.asarray(plurals, dtype=bool)
        thing = np.asarray(things, dtype=bool) | plural
        everything = np.ones_like(plural)
        members = (everything, thing, ~thing, ~plural, plural)
        for name, member in zip(SUBSETS, members, strict=True):
            self.masks[name] += int(np.count_nonzero(member))
            self.levels[name] += int(levels[member].sum())

    def merge(self, other: RecallScores) -> None:
        """Add what another process has counted."""
        for name in SUBSETS:
            self.masks[name] += other.masks[name]
            self.levels[name] += other.levels[name]

    def average_recall(self, subset: str = "all") -> float:
        """Average recall of one of `SUBSETS`; nan if it has no mask."""
        if subset not in SUBSETS:
            raise ValueError(f"subset {subset!r} is not one of {SUBSETS}")
        return share(self.levels[subset], _STEPS * self.masks[subset])

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; null for a subset without masks."""
        return {
            "average_recall": {name: or_null(self.average_recall(name)) for name in SUBSETS},
            "masks": dict(self.masks),
        }
