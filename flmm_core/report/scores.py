"""The scores of a set of rows, each with a bootstrap interval over images.

Every score is a ratio of two sums, so that one bootstrap serves all of them:

    ciou          intersections over unions; 0 if there is no union
    miou          mean IoU over phrases; 0/0 counts as 0
    precision@t   share of phrases with IoU >= t
    coarse_ciou   as ciou, of the masks before the refiner
    box@0.5       share of phrases whose tight boxes have IoU >= 0.5
    point         share of phrases whose surest point lies in the true mask
    giou          as miou, but 0/0 counts as 1 (gRefCOCO, ReasonSeg); only where there are phrases
                  without target or regions to ignore
    no_target_accuracy, target_accuracy
                  the share of phrases without target that were answered with nothing, and of the
                  others that were not; only where there are phrases without target
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flmm_core.evaluation.metrics import THRESHOLDS
from flmm_core.report.cells import Columns, Floats, Ints
from flmm_core.report.statistics import bootstrap_intervals, ratios, sum_by_cluster

TITLES = {
    "ciou": "cIoU",
    "miou": "mIoU",
    **{f"precision@{t}": f"P@{t}" for t in THRESHOLDS},
    "coarse_ciou": "coarse cIoU",
    "box@0.5": "box@0.5",
    "point": "pointing",
    "giou": "gIoU",
    "no_target_accuracy": "N-acc",
    "target_accuracy": "T-acc",
}
"""The scores in the table's order, by the field's names."""


@dataclass(frozen=True)
class Score:
    """One figure, a fraction of 1; None where no phrase counts for it.

    Attributes:
        value: The figure.
        low: Lower end of its 95 % interval, None with fewer than two images.
        high: Upper end.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scores:
    """All figures of a set of rows.

    Attributes:
        phrases: How many rows.
        images: How many images they come from.
        by_name: Each of `TITLES`.
    """

    phrases: int
    pictures: int
    by_name: dict[str, Score]

    def __getitem__(self, name: str) -> Score:
        return self.by_name[name]


def score_rows(columns: Columns, chosen: Ints | None = None, *, resamples: int = 2000) -> Scores:
    """The scores of all rows, or of those at the places `chosen`."""
    rows = np.arange(len(columns)) if chosen is None else chosen
    _, pictures = np.unique(columns.pictures[rows], return_inverse=True)
    numerators, denominators = ratio_parts(columns, rows)
    tops, bottoms = sum_by_cluster(pictures, numerators), sum_by_cluster(pictures, denominators)
    values = ratios(tops.sum(0), bottoms.sum(0))
    if len(rows) and np.isnan(values[0]):
        values[0] = 0.0  # no union at all: nothing is found, as in `MaskScores.ciou`
    ends = bootstrap_intervals(tops, bottoms, resamples=resamples)
    by_name = {
        name: Score(*(None if np.isnan(x) else float(x) for x in (value, *interval)))
        for name, value, interval in zip(TITLES, values, ends, strict=True)
    }
    return Scores(len(rows), len(tops), by_name)


def ratio_parts(columns: Columns, rows: Ints) -> tuple[Floats, Floats]:
    """Each row's part of the numerators and denominators of `TITLES`: (M, K) twice."""
    counts = columns.counts[rows]
    intersection, union, predicted, truth, coarse_intersection, coarse_union = counts.T
    _, _, box_iou, point, _ = columns.values[rows].T
    one = np.ones(len(rows))
    iou = intersection / np.maximum(union, 1)
    # In whole numbers, because 0.6 is not one: IoU >= 6/10 where 10 I >= 6 U.
    hits = [
        (union > 0) & (10 * intersection >= round(10 * threshold) * union)
        for threshold in THRESHOLDS
    ]
    has_coarse, has_box, has_point = coarse_union >= 0, ~np.isnan(box_iou), ~np.isnan(point)
    no_target = truth == 0
    some_without = no_target.any()
    empty_is_right = some_without or (columns.ignored[rows] > 0).any()
    pairs = [
        (intersection, union),
        (iou, one),
        *((hit, one) for hit in hits),
        (np.where(has_coarse, coarse_intersection, 0), np.where(has_coarse, coarse_union, 0)),
        (np.where(has_box, box_iou >= 0.5, 0), has_box),
        (np.where(has_point, point, 0), has_point),
        (np.where(union == 0, 1, iou) * empty_is_right, one * empty_is_right),
        (no_target & (predicted == 0), no_target),
        ((~no_target & (predicted > 0)) * some_without, ~no_target * some_without),
    ]
    numerators, denominators = zip(*pairs, strict=True)
    return (
        np.stack(numerators, axis=1).astype(np.float64),
        np.stack(denominators, axis=1).astype(np.float64),
    )
