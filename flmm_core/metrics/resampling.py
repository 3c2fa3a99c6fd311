"""How sure a score is, and whether two systems differ: resampling of pictures.

Masks of one picture are alike, so pictures, not masks, are drawn (the cluster bootstrap; Efron
and Tibshirani 1993, Davison and Hinkley 1997). All that a picture contributes are four sums, so
one number a draw is a matrix product.

    interval      percentiles of the score over draws of as many pictures, with replacement
    paired test   each picture's two results are exchanged or not by a fair coin; p is the share
                  of (1 + draws) whose difference is at least as large as the observed one, on
                  either side, the observed one among them, so it is never 0

Pictures are taken in the order of their names, so the numbers depend on the seed alone and not on
the order in which results came, nor on how many processes made them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flmm_core.errors import DataError
from flmm_core.metrics.masks import MaskScores
from flmm_core.metrics.sums import IouSums, or_null

METRICS = ("ciou", "miou")
_CELLS = 1 << 22  # of the largest table of draws × pictures at one time

Floats = NDArray[np.float64]


@dataclass
class PictureSums:
    """Exact sums by picture; memory grows with the number of pictures, not of masks.

    Attributes:
        pictures: The sums of each picture, by a name that is the same in every system.
    """

    pictures: dict[str, IouSums] = field(default_factory=dict)

    def add(self, picture: str, scores: IouSums) -> None:
        """Add a picture's sums, of any kind of score: its rules for empty masks are kept."""
        if scores.masks:
            self.pictures.setdefault(picture, IouSums()).merge(scores)

    def add_counts(self, picture: str, intersections: Iterable[int], unions: Iterable[int]) -> None:
        """Add a picture's masks by their pixel counts; 0/0 counts as an IoU of 0."""
        scores = MaskScores()
        scores.add_counts(intersections, unions)
        self.add(picture, scores)

    def merge(self, other: PictureSums) -> None:
        """Add what another process has counted."""
        for picture, scores in other.pictures.items():
            self.add(picture, scores)

    def total(self) -> IouSums:
        """The sums over all pictures."""
        total = IouSums()
        for scores in self.pictures.values():
            total.merge(scores)
        return total

    def table(self) -> Floats:
        """(pictures, 4) of intersection, union, sum of IoUs and masks, in the names' order."""
        rows = [self.pictures[name] for name in sorted(self.pictures)]
        columns = [(row.intersection, row.union, row.iou_sum, row.masks) for row in rows]
        return np.array(columns, dtype=np.float64).reshape(-1, 4)


@dataclass(frozen=True)
class Interval:
    """A score and what it would be on other pictures of the same kind.

    Attributes:
        value: The score on all pictures; nan without any.
        low, high: The interval's ends.
        level: The share of draws between them.
    """

    value: float
    low: float
    high: float
    level: float

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; null where there are no pictures."""
        return {name: or_null(number) for name, number in asdict(self).items()}


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same pictures.

    Attributes:
        metric: "ciou" or "miou".
        first, second: Each one's score.
        difference: second - first, with its bootstrap interval over pictures.
        p_value: Of the paired test, two-sided, from 1 / (1 + draws) to 1.
        pictures: How many pictures both have.
        draws: How many draws were made for each of the two.
    """

    metric: str
    first: float
    second: float
    difference: Interval
    p_value: float
    pictures: int
    draws: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def bootstrap(
    sums: PictureSums, *, draws: int = 2000, level: float = 0.95, seed: int = 0
) -> dict[str, Interval]:
    """The cIoU and mIoU with their intervals over pictures, by metric."""
    table, total = sums.table(), sums.total()
    if not len(table):
        return {name: Interval(nan, nan, nan, level) for name in METRICS}
    drawn = _scores(np.concatenate([counts @ table for counts in _draws(len(table), draws, seed)]))
    return {name: _interval(getattr(total, name), drawn[name], level) for name in METRICS}


def compare(
    first: PictureSums,
    second: PictureSums,
    *,
    draws: int = 10_000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, Comparison]:
    """Test whether two systems differ on the same pictures, by metric.

    Raises:
        DataError: The systems have no pictures, not the same ones, or not the same number of
            masks in one.
    """
    _check_pairs(first, second)
    one, other = first.table(), second.table()
    sums = [counts @ np.hstack([one, other]) for counts in _draws(len(one), draws, seed)]
    drawn = np.concatenate(sums)  # (draws, 8)
    moved = np.concatenate([coins @ (other - one) for coins in _coins(len(one), draws, seed)])
    before, after = first.total(), second.total()
    drawn_before, drawn_after = _scores(drawn[:, :4]), _scores(drawn[:, 4:])
    swapped_before, swapped_after = (
        _scores(one.sum(axis=0) + moved),
        _scores(other.sum(axis=0) - moved),
    )
    found = {}
    for name in METRICS:
        scores = getattr(before, name), getattr(after, name)
        difference = scores[1] - scores[0]
        chance = np.abs(swapped_after[name] - swapped_before[name])
        # A draw that leaves the sums as they are must count, whatever its last digit.
        as_large = int(np.count_nonzero(chance >= abs(difference) - 1e-12))
        found[name] = Comparison(
            metric=name,
            first=scores[0],
            second=scores[1],
            difference=_interval(difference, drawn_after[name] - drawn_before[name], level),
            p_value=(1 + as_large) / (1 + draws),
            pictures=len(one),
            draws=draws,
        )
    return found


def _scores(sums: Floats) -> dict[str, Floats]:
    """cIoU and mIoU of (..., 4) sums; no union gives 0, as in `IouSums`."""
    intersection, union, iou, masks = np.moveaxis(sums, -1, 0)
    return {
        "ciou": intersection / np.maximum(union, 1),
        "miou": iou / np.maximum(masks, 1),
    }


def _interval(value: float, drawn: Floats, level: float) -> Interval:
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), level)


def _draws(pictures: int, draws: int, seed: int) -> Iterator[Floats]:
    """How often each picture is drawn, in tables of (some draws, pictures)."""
    generator = np.random.default_rng([seed, 0])
    for size in _sizes(pictures, draws):
        chosen = generator.integers(0, pictures, (size, pictures))
        chosen += np.arange(size)[:, None] * pictures
        counts = np.bincount(chosen.ravel(), minlength=size * pictures)
        yield counts.reshape(size, pictures).astype(np.float64)


def _coins(pictures: int, draws: int, seed: int) -> Iterator[Floats]:
    """Whether each picture's two results are exchanged, 0 or 1, (some draws, pictures)."""
    generator = np.random.default_rng([seed, 1])
    for size in _sizes(pictures, draws):
        yield generator.integers(0, 2, (size, pictures)).astype(np.float64)


def _sizes(pictures: int, draws: int) -> Iterator[int]:
    step = max(1, _CELLS // pictures)
    for start in range(0, draws, step):
        yield min(step, draws - start)


def _check_pairs(first: PictureSums, second: PictureSums) -> None:
    one, other = first.pictures, second.pictures
    wrong = sorted(one.keys() ^ other.keys()) or [
        name for name in sorted(one) if one[name].masks != other[name].masks
    ]
    if wrong or not one:
        counts = [
            scores[wrong[0]].masks if wrong and wrong[0] in scores else 0 for scores in (one, other)
        ]
        raise DataError(
            f"Cannot compare {len(one)} pictures with {len(other)}.",
            found=f"'{wrong[0]}' has {counts[0]} masks in the first and {counts[1]} in the second."
            if wrong
            else "",
            repair="Compare results of the same data, protocol and limit.",
        )
