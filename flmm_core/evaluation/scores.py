"""The table of scores, each defined once over per-phrase rows. No torch.

A score is the ratio of two sums over rows. To add one, add an entry to `SCORES`: `flmm train`,
`eval` and `benchmark` then write it as JSON, and `flmm report` and `flmm report compare` show it.
docs/metrics.md lists the sources and the rules for empty masks.

I and U are a row's intersection and union in pixels, IoU = I/U. All terms are integers (an IoU in
units of 2^-64, rounded down), so the sums are exact in any order, and a mean IoU is less than
2^-64 below the true one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from flmm_core.evaluation.phrase_rows import PhraseRow

Terms = tuple[int, int]
"""A row's terms of the numerator and the denominator."""
TermsOf = Callable[[PhraseRow], Terms | None]
"""None for a row that does not count."""

IOU_BITS = 64
RECALL_STEPS = 100_000
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SUBSETS = ("all", "thing", "stuff", "singular", "plural")
"""Of panoptic narrative grounding (PNG)."""


@dataclass(frozen=True)
class Score:
    """One score, a fraction of 1.

    Attributes:
        summary: Its definition in one line, the tooltip of its column.
        terms: Of a row.
        paper: Of a row, in the protocol "flmm-paper"; None if they are the same.
        title: Column heading in reports; empty for scores that are in JSON only.
        groups: The objects in the JSON of an evaluation that contain it.
        key: Its key there; empty for its name in the table.
        where: The score is shown only for sets with at least one row like this.
    """

    summary: str
    terms: TermsOf
    title: str = ""
    groups: tuple[str, ...] = ("refined",)
    key: str = ""
    where: Callable[[PhraseRow], bool] = lambda row: True
    paper: TermsOf | None = None

    def terms_in(self, protocol: str) -> TermsOf:
        """The terms of a row in a protocol."""
        return self.paper if self.paper and protocol == "flmm-paper" else self.terms


def reaches(intersection: int, union: int, threshold: float = 0.5) -> bool:
    """Whether IoU >= threshold, a multiple of 0.1, decided in integers; false for 0/0."""
    return union > 0 and 10 * intersection >= round(10 * threshold) * union


def exceeds(intersection: int, union: int, threshold: float) -> bool:
    """As `reaches`, but IoU > threshold."""
    return 10 * intersection > round(10 * threshold) * union


def recall_levels(intersection: int, union: int) -> int:
    """How many of PNG's thresholds the IoU reaches, 1 to 99,999.

    The published average recall is the left Riemann sum of recall(t) over
    t = np.arange(0, 1, 1e-5); counting the reached thresholds per mask is the same sum. The
    thresholds are the published floats, so ties are decided as there.
    """
    iou = intersection / max(union, 1)
    level = round(iou * RECALL_STEPS)
    if level * (1 / RECALL_STEPS) > iou:
        level -= 1
    return min(level + 1, RECALL_STEPS - 1)


def _refined(row: PhraseRow) -> Terms:
    return row.intersection, row.union


def _coarse(row: PhraseRow) -> Terms | None:
    if row.coarse_intersection is None or row.coarse_union is None:
        return None
    return row.coarse_intersection, row.coarse_union


def _refined_with_target(row: PhraseRow) -> Terms | None:
    return _refined(row) if row.truth else None


def _mean(value: Callable[[int, int], int], pixels: TermsOf, unit: int = 1) -> TermsOf:
    """The mean of a function of I and U over masks, in units of 1 / `unit`."""

    def terms(row: PhraseRow) -> Terms | None:
        counted = pixels(row)
        return counted and (value(*counted), unit)

    return terms


def _mean_iou(pixels: TermsOf = _refined, empty: int = 0) -> TermsOf:
    """The mean IoU over masks; 0/0 counts as `empty`."""

    def iou(intersection: int, union: int) -> int:
        return (intersection << IOU_BITS) // union if union else empty << IOU_BITS

    return _mean(iou, pixels, 1 << IOU_BITS)


def _share_reaching(threshold: float, pixels: TermsOf = _refined) -> TermsOf:
    return _mean(lambda both, either: reaches(both, either, threshold), pixels)


def _share_exceeding(threshold: float, pixels: TermsOf = _refined) -> TermsOf:
    return _mean(lambda both, either: exceeds(both, either, threshold), pixels)


def _average_recall(subset: str) -> TermsOf:
    mean = _mean(recall_levels, _refined, RECALL_STEPS)
    return lambda row: mean(row) if subset in _subsets(row) else None


def _subsets(row: PhraseRow) -> tuple[str, ...]:
    """A phrase that names several segments is plural and always a thing."""
    if not {"thing", "stuff", "singular", "plural"}.intersection(row.tags):
        return ()
    if "plural" in row.tags:
        return "all", "thing", "plural"
    return "all", "thing" if "thing" in row.tags else "stuff", "singular"


SCORES: dict[str, Score] = {
    "ciou": Score(
        "sum of I over sum of U (also oIoU)",
        _refined,
        "cIoU",
        groups=("refined", "generalised", "reasoning"),
    ),
    "miou": Score("mean IoU; 0/0 counts as 0", _mean_iou(), "mIoU"),
    **{
        f"precision@{t}": Score(
            f"share of masks with IoU >= {t} (> {t} in flmm-paper)",
            _share_reaching(t),
            f"P@{t}",
            paper=_share_exceeding(t),
        )
        for t in THRESHOLDS
    },
    "coarse_ciou": Score(
        "as ciou, before the refiner", _coarse, "coarse cIoU", ("coarse",), "ciou"
    ),
    "coarse_miou": Score(
        "as miou, before the refiner", _mean_iou(_coarse), groups=("coarse",), key="miou"
    ),
    **{
        f"coarse_precision@{t}": Score(
            f"as precision@{t}, before the refiner",
            _share_reaching(t, _coarse),
            groups=("coarse",),
            key=f"precision@{t}",
            paper=_share_exceeding(t, _coarse),
        )
        for t in THRESHOLDS
    },
    "box@0.5": Score(
        "share of targets with IoU >= 0.5 of the tight boxes",
        lambda row: None if row.box_iou is None else (row.box_iou >= 0.5, 1),
        "box@0.5",
        ("box",),
        "accuracy",
    ),
    "point": Score(
        "share of targets with the pixel of the highest logit in the true mask",
        lambda row: None if row.point_in_mask is None else (row.point_in_mask, 1),
        "pointing",
        ("point",),
        "accuracy",
    ),
    "giou": Score(
        "mean IoU; 0/0 counts as 1 (gRefCOCO, ReasonSeg)",
        _mean_iou(empty=1),
        "gIoU",
        ("generalised", "reasoning"),
        where=lambda row: not row.truth or row.ignored > 0,
    ),
    "no_target_accuracy": Score(
        "share of phrases without target with an empty mask (gRefCOCO)",
        lambda row: None if row.truth else (row.predicted == 0, 1),
        "N-acc",
        ("generalised",),
        "n_acc",
    ),
    "target_accuracy": Score(
        "share of phrases with target with a nonempty mask (gRefCOCO)",
        lambda row: (row.predicted > 0, 1) if row.truth else None,
        "T-acc",
        ("generalised",),
        "t_acc",
        where=lambda row: not row.truth,
    ),
    "target_ciou": Score(
        "as ciou, of phrases with target; selects the best checkpoint",
        _refined_with_target,
        groups=("generalised",),
    ),
    **{
        f"target_precision@{t}": Score(
            f"share of phrases with target with IoU >= {t} (gRefCOCO)",
            _share_reaching(t, _refined_with_target),
            groups=("generalised",),
            key=f"precision@{t}",
        )
        for t in THRESHOLDS
    },
    **{
        f"average_recall_{subset}": Score(
            f"average recall over thresholds from 0 to 1, PNG subset {subset}",
            _average_recall(subset),
            groups=("recall",),
            key=subset,
        )
        for subset in SUBSETS
    },
}
"""By name, in the order of a report's columns."""


def titles() -> dict[str, str]:
    """The scores of reports: name -> column heading."""
    return {name: score.title for name, score in SCORES.items() if score.title}


def terms(row: PhraseRow, protocol: str = "standard") -> dict[str, Terms]:
    """The terms of a row, for the scores that it counts for."""
    found = ((name, score.terms_in(protocol)(row)) for name, score in SCORES.items())
    return {name: terms for name, terms in found if terms is not None}


def group(name: str) -> dict[str, str]:
    """The scores in one object of the JSON of an evaluation: key -> name in the table."""
    keys = {score.key or own: own for own, score in SCORES.items() if name in score.groups}
    # gRefCOCO and ReasonSeg list it first.
    return {"giou": keys["giou"], **keys} if "giou" in keys else keys
