"""Where a head fails: its rows by size of the object, rivals, words, and parts of the data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flmm_core.evaluation.metrics import CalibrationScores, is_right
from flmm_core.report.cells import Columns, Floats, Ints
from flmm_core.report.scores import Scores, score_rows

RESAMPLES = 1000
MOST_PARTS = 12
"""Parts of a data set that are shown; the rest, which are the smallest, are counted."""


@dataclass(frozen=True)
class Slice:
    """One group of rows.

    Attributes:
        name: Its group.
        scores: Of its rows; there is at least one.
    """

    name: str
    scores: Scores


@dataclass(frozen=True)
class Slicing:
    """The rows by one property.

    Attributes:
        key: For machines.
        title: For people.
        slices: In the property's order; groups without rows are left out.
        left_out: Rows whose property is unknown or whose part is not shown.
    """

    key: str
    title: str
    slices: tuple[Slice, ...]
    left_out: int = 0


@dataclass(frozen=True)
class Reliability:
    """How calibrated probabilities fare (right: IoU >= 0.5).

    Attributes:
        stated: Mean probability of the phrases in each bin of `CalibrationScores`, nan without any.
        right: Share of them that are right.
        counts: How many there are.
        error: Expected calibration error.
    """

    stated: Floats
    right: Floats
    counts: Ints
    error: float


def slice_rows(columns: Columns) -> tuple[Slicing, ...]:
    """Every slicing that parts the rows into at least two groups."""
    share = columns.truth / columns.area
    slicings = [
        _binned(
            columns,
            "object_size",
            "Object size (share of the image)",
            np.where(columns.truth == 0, -1.0, share),
            (0.0, 0.01, 0.05, 0.2),
            ("no target", "< 1 %", "1–5 %", "5–20 %", "≥ 20 %"),
        ),
        _binned(
            columns,
            "distractors",
            "Other objects of its class",
            columns.distractors,
            (0, 1, 2, 3),
            (None, "0", "1", "2", "3 +"),
        ),
        _binned(
            columns,
            "words",
            "Words in the phrase",
            columns.words,
            (3, 5, 8),
            ("1–2", "3–4", "5–7", "8 +"),
        ),
        _parts(columns, "slice", "Part of the data set", [(name,) for name in columns.slices]),
        _parts(columns, "tag", "Tag", columns.tags),
    ]
    return tuple(slicing for slicing in slicings if len(slicing.slices) > 1)


def reliability(columns: Columns) -> Reliability | None:
    """The calibration of the probabilities, or None without any."""
    known = ~np.isnan(columns.probability)
    if not known.any():
        return None
    scores = CalibrationScores()
    right = is_right(columns.intersection[known], columns.union[known])
    scores.add(columns.probability[known].tolist(), right.tolist())
    return Reliability(
        stated=np.array([mean for mean, _ in scores.means]),
        right=np.array([share for _, share in scores.means]),
        counts=np.array(scores.masks),
        error=scores.ece,
    )


def _binned(
    columns: Columns,
    key: str,
    title: str,
    values: Floats | Ints,
    edges: Sequence[float],
    names: Sequence[str | None],
) -> Slicing:
    """Groups [-inf, e0), [e0, e1), ..., [en, inf); those named None are left out."""
    bins = np.searchsorted(np.asarray(edges), values, side="right")
    slices = []
    for number, name in enumerate(names):
        rows = np.flatnonzero(bins == number)
        if name is not None and len(rows):
            slices.append(Slice(name, score_rows(columns, rows, resamples=RESAMPLES)))
    shown = sum(part.scores.phrases for part in slices)
    return Slicing(key, title, tuple(slices), len(columns) - shown)


def _parts(columns: Columns, key: str, title: str, parts: Sequence[Sequence[str]]) -> Slicing:
    """Groups by name, the largest first; a row may be in several."""
    rows: dict[str, list[int]] = {}
    for place, names in enumerate(parts):
        for name in filter(None, names):
            rows.setdefault(name, []).append(place)
    largest = sorted(rows, key=lambda name: (-len(rows[name]), name))[:MOST_PARTS]
    slices = [
        Slice(name, score_rows(columns, np.array(rows[name]), resamples=RESAMPLES))
        for name in largest
    ]
    shown = {place for name in largest for place in rows[name]}
    return Slicing(key, title, tuple(slices), len(columns) - len(shown))
