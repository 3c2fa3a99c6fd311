"""Phrases that name nothing: how well probabilities tell them, and the threshold. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from flmm_core.pipeline.confidence import NotThere


@dataclass
class Separation:
    """The probabilities of phrases with a target and of those without."""

    there: list[float] = field(default_factory=list)
    absent: list[float] = field(default_factory=list)

    def add(self, probability: float, there: bool) -> None:
        """Count one phrase."""
        (self.there if there else self.absent).append(probability)

    def merge(self, other: Separation) -> None:
        """Count the phrases of another one."""
        self.there += other.there
        self.absent += other.absent

    @property
    def auroc(self) -> float:
        """The area under the ROC curve, 0 to 1; nan unless there are phrases of both kinds.

        How often a phrase with target has a higher probability than one without; a tie counts half
        (Hanley and McNeil, Radiology 1982).
        """
        pairs = len(self.there) * len(self.absent)
        if not pairs:
            return math.nan
        ranks = rankdata([*self.there, *self.absent])[: len(self.there)]
        return float((ranks.sum() - len(ranks) * (len(ranks) + 1) / 2) / pairs)


def choose_threshold(probabilities: ArrayLike, no_target: ArrayLike) -> NotThere | None:
    """Choose the lowest threshold for "not there" that maximizes the mean of N-acc and T-acc.

    Candidates are 0 (always answer), the midpoints between neighboring probabilities, and a number
    above 1 (never answer).

    Args:
        probabilities: (P,) calibrated.
        no_target: (P,) bool, whether the phrase has no target.

    Returns:
        None unless there are phrases both with and without target.
    """
    scores, absent = np.asarray(probabilities, np.float64), np.asarray(no_target, bool)
    count, without_target = len(scores), int(absent.sum())
    if without_target in (0, count):
        return None
    # values[k]: the mean of N-acc and T-acc with the k lowest distinct probabilities withheld.
    distinct, place = np.unique(scores, return_inverse=True)
    gain = np.where(absent, 0.5 / without_target, -0.5 / (count - without_target))
    values = 0.5 + np.concatenate([[0.0], np.cumsum(np.bincount(place, weights=gain))])
    # There is no midpoint between two adjacent floats: the upper one separates them as well.
    midpoints = np.maximum((distinct[:-1] + distinct[1:]) / 2, np.nextafter(distinct[:-1], 1))
    thresholds = np.concatenate([[0.0], midpoints, [np.nextafter(1.0, 2.0)]])
    # Rounded, so that float noise does not decide between equal values.
    best = int(np.argmax(values.round(12)))
    return NotThere(
        threshold=float(thresholds[best]),
        quantity="balanced",
        value=float(values[best]),
        without=float(values[0]),
        samples=count,
    )
