"""The scores of a measurement, and of its rows by size, words and so on, with their intervals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from flmm_core.evaluation.reliability import Reliability
from flmm_core.evaluation.scores import titles
from flmm_core.report.measurements import Bools, Columns, Floats, Ints
from flmm_core.report.statistics import Sums, bootstrap_intervals

MOST_PARTS = 12
"""Parts of a data set that are shown; the others, the smallest, are only counted."""


@dataclass(frozen=True)
class Estimate:
    """One figure, a fraction of 1, with its 95 % interval.

    The figure is None if no phrase counts for it, the interval with fewer than two images.
    """

    value: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Scores:
    """All figures of a set of rows: each score of `titles()`, and numbers of rows and images."""

    phrases: int
    pictures: int
    scores: Mapping[str, Estimate]

    def __getitem__(self, name: str) -> Estimate:
        return self.scores[name]


@dataclass(frozen=True)
class Slicing:
    """The rows by one property.

    Attributes:
        groups: Scores by the group's name, in the order of the property; no group is empty.
        left_out: Rows with an unknown property or in a part that is not shown.
    """

    key: str
    title: str
    groups: Mapping[str, Scores]
    left_out: int


def score_rows(columns: Columns, chosen: Ints | None = None, *, resamples: int = 2000) -> Scores:
    """The scores of all rows, or of those at the places `chosen`."""
    rows = np.arange(len(columns)) if chosen is None else chosen
    _, images = np.unique(columns.pictures[rows], return_inverse=True)
    (tops, bottoms), shown = image_sums(columns, rows, images)
    values = tops.sum(0) / np.maximum(bottoms.sum(0), 1)
    ends = bootstrap_intervals((tops, bottoms), resamples=resamples)
    by_name = {
        name: Estimate(float(value), *map(or_none, interval)) if known else Estimate(None)
        for name, value, interval, known in zip(titles(), values, ends, shown, strict=True)
    }
    return Scores(len(rows), len(tops), by_name)


def image_sums(columns: Columns, rows: Ints, images: Ints) -> tuple[Sums, Bools]:
    """The sums of the K scores of `titles()` by image, and (K,) whether the rows have the score.

    `rows` are (M,) places in the columns, `images` the (M,) number of their images, in [0, N).
    """
    terms = columns.terms[rows]
    has_terms = np.isfinite(terms[..., 1]).any(axis=0)
    shown: Bools = np.asarray(has_terms & columns.shows[rows].any(axis=0))
    sums = np.zeros((int(images.max(initial=-1)) + 1, *terms.shape[1:]))
    np.add.at(sums, images, np.where(shown[:, None], np.nan_to_num(terms), 0))
    return (sums[..., 0], sums[..., 1]), shown


def or_none(number: float) -> float | None:
    """The number, or None for nan, which JSON does not have."""
    return None if np.isnan(number) else float(number)


def slice_rows(columns: Columns) -> tuple[Slicing, ...]:
    """Every slicing with at least two groups."""
    share = np.where(columns.truth == 0, -1.0, columns.truth / columns.area)
    sizes = {"no target": -1, "< 1 %": 0, "1–5 %": 0.01, "5–20 %": 0.05, "≥ 20 %": 0.2}
    rivals = {"0": 0, "1": 1, "2": 2, "3 +": 3}
    words = {"1–2": 0, "3–4": 3, "5–7": 5, "8 +": 8}
    groupings = {
        ("object_size", "Object size (share of the image)"): _binned(share, sizes),
        ("distractors", "Other objects of its class"): _binned(columns.distractors, rivals),
        ("words", "Words in the phrase"): _binned(columns.words, words),
        ("slice", "Part of the data set"): _largest([(name,) for name in columns.slices]),
        ("tag", "Tag"): _largest(columns.tags),
    }
    return tuple(
        Slicing(
            key,
            title,
            {name: score_rows(columns, rows, resamples=1000) for name, rows in groups.items()},
            left_out=len(columns) - len(np.unique(np.concatenate([*groups.values()]))),
        )
        for (key, title), groups in groupings.items()
        if len(groups) > 1
    )


def reliability(columns: Columns) -> Reliability | None:
    """The calibration of the probabilities; None if there are none."""
    known = np.flatnonzero(~np.isnan(columns.probability))
    found = Reliability()
    for probability, iou in zip(columns.probability[known], columns.iou[known], strict=True):
        found.add(float(probability), bool(iou >= 0.5))
    return found if len(known) else None


def _binned(values: Floats, starts: Mapping[str, float]) -> dict[str, Ints]:
    """Rows by the bin of their value, each from its start to the next; without empty bins."""
    bins = np.searchsorted([*starts.values()], values, side="right")
    rows = {name: np.flatnonzero(bins == number) for number, name in enumerate(starts, start=1)}
    return {name: places for name, places in rows.items() if len(places)}


def _largest(parts: Sequence[Sequence[str]]) -> dict[str, Ints]:
    """Rows by the names of their parts, the largest first; a row may be in several."""
    rows: dict[str, list[int]] = {}
    for place, names in enumerate(parts):
        for name in filter(None, names):
            rows.setdefault(name, []).append(place)
    largest = sorted(rows, key=lambda name: (-len(rows[name]), name))[:MOST_PARTS]
    return {name: np.array(rows[name]) for name in largest}
