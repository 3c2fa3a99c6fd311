"""From a mask's raw score to the probability that the mask is right, and how far to trust it.

A mask is right if its IoU is at least 0.5; one of 0/0 or without a true thing is not. A calibrator
is fitted on validation masks and never lowers a probability as the score rises.

    isotonic  the non-decreasing step function with the least squared error (Zadrozny and Elkan,
              KDD 2002), by pooling adjacent violators; straight between two steps. Fits any shape
              and wants about 1,000 masks or more.
    platt     sigmoid(slope * score + offset) by maximum likelihood with Platt's smoothed targets
              (Platt 1999), slope >= 0. Two numbers, for a few hundred masks.

    ECE  expected calibration error: probabilities in B bins of equal width, bin k holding
         k/B <= p < (k+1)/B and the last one also p = 1; the mean over masks of their bin's
         |share right - mean probability| (Naeini et al., AAAI 2015; Guo et al., ICML 2017)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flmm_core.errors import DataError, UsageError, did_you_mean
from flmm_core.evaluation.metrics.masks import same_length
from flmm_core.evaluation.metrics.sums import IOU_BITS, IOU_ONE, or_null, share

BINS = 15
Floats = NDArray[np.float64]


def is_right(intersections: ArrayLike, unions: ArrayLike) -> NDArray[np.bool_]:
    """(P,) whether each mask has an IoU >= 0.5, decided in integers; 0/0 is not right."""
    both, either = np.asarray(intersections, np.int64), np.asarray(unions, np.int64)
    return (either > 0) & (2 * both >= either)


@dataclass
class CalibrationScores:
    """Running sums over masks, by bin of their probability.

    Probabilities are summed in units of 2^-64, so order and number of processes do not matter.

    Attributes:
        masks: How many masks each bin holds; its length is the number of bins.
        right: How many of them are right.
        probability_units: Sum of their probabilities, in units of 2^-64.
    """

    masks: list[int] = field(default_factory=lambda: [0] * BINS)
    right: list[int] = field(default_factory=list)
    probability_units: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.right = self.right or [0] * len(self.masks)
        self.probability_units = self.probability_units or [0] * len(self.masks)

    def add(self, probabilities: Iterable[float], right: Iterable[bool]) -> None:
        """Count masks by their probability, 0 to 1, and whether they are right."""
        bins = len(self.masks)
        for probability, hit in zip(probabilities, right, strict=True):
            if not 0 <= probability <= 1:
                raise ValueError(f"a probability of {probability}")
            units = int(math.ldexp(probability, IOU_BITS))
            place = min(units * bins >> IOU_BITS, bins - 1)
            self.masks[place] += 1
            self.right[place] += bool(hit)
            self.probability_units[place] += units

    def merge(self, other: CalibrationScores) -> None:
        """Add what another process has counted, in as many bins."""
        for mine, more in (
            (self.masks, other.masks),
            (self.right, other.right),
            (self.probability_units, other.probability_units),
        ):
            mine[:] = [one + another for one, another in zip(mine, more, strict=True)]

    @property
    def ece(self) -> float:
        """Expected calibration error, 0 to 1; nan without masks."""
        gaps = (
            abs(hits * IOU_ONE - units)
            for hits, units in zip(self.right, self.probability_units, strict=True)
        )
        return share(sum(gaps), sum(self.masks) * IOU_ONE)

    @property
    def means(self) -> list[tuple[float, float]]:
        """Of each bin, the mean probability and the share that is right; nan without masks."""
        return [
            (share(units, count * IOU_ONE), share(hits, count))
            for count, hits, units in zip(
                self.masks, self.right, self.probability_units, strict=True
            )
        ]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, with what a reliability diagram draws; empty bins are left out."""
        bins = len(self.masks)
        return {
            "ece": or_null(self.ece),
            "masks": sum(self.masks),
            "bins": [
                {
                    "from": place / bins,
                    "to": (place + 1) / bins,
                    "masks": count,
                    "mean_probability": mean,
                    "share_right": right,
                }
                for place, (count, (mean, right)) in enumerate(
                    zip(self.masks, self.means, strict=True)
                )
                if count
            ],
        }


class Calibrator(Protocol):
    """A non-decreasing map from raw scores to probabilities."""

    def __call__(self, scores: ArrayLike) -> Floats:
        """Probabilities of being right, in the shape of the scores."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, and for `calibrator_from_dict`."""
        ...


@dataclass(frozen=True)
class IsotonicCalibrator:
    """Straight lines between fitted points, constant beyond the first and the last.

    Attributes:
        scores: Where the function is known, rising.
        probabilities: Its values there, never falling.
    """

    kind: ClassVar[str] = "isotonic"
    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __call__(self, scores: ArrayLike) -> Floats:
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "scores": list(self.scores),
            "probabilities": list(self.probabilities),
        }

    @classmethod
    def fit(cls, scores: Floats, right: Floats) -> IsotonicCalibrator:
        """Pool adjacent violators in one pass; equal scores share one probability."""
        values, place = np.unique(scores, return_inverse=True)
        weights = np.bincount(place)
        hits = np.bincount(place, weights=right)
        blocks: list[tuple[float, int, int, int]] = []  # hits, masks, first value, last value
        for index in range(len(values)):
            block = (float(hits[index]), int(weights[index]), index, index)
            while blocks and blocks[-1][0] * block[1] >= block[0] * blocks[-1][1]:
                before = blocks.pop()
                block = (before[0] + block[0], before[1] + block[1], before[2], index)
            blocks.append(block)
        points = [
            (float(values[edge]), hit / weight)
            for hit, weight, first, last in blocks
            for edge in sorted({first, last})
        ]
        return cls(tuple(x for x, _ in points), tuple(y for _, y in points))


@dataclass(frozen=True)
class PlattCalibrator:
    """sigmoid(slope * score + offset)."""

    kind: ClassVar[str] = "platt"
    slope: float
    offset: float

    def __call__(self, scores: ArrayLike) -> Floats:
        return _sigmoid(self.slope * np.asarray(scores, np.float64) + self.offset)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": self.kind, "slope": self.slope, "offset": self.offset}

    @classmethod
    def fit(cls, scores: Floats, right: Floats) -> PlattCalibrator:
        """Newton's method on standardised scores, halving steps that do not help."""
        hits = right.sum()
        # Platt's targets: neither 0 nor 1, so that the fit stays finite where scores separate.
        targets = np.where(right > 0, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))
        mean, spread = scores.mean(), scores.std()
        flat = cls(0.0, _logit(targets.mean()))
        # Scores that are as good as equal tell nothing, and their slope would overflow.
        if spread <= 1e-9 * max(np.abs(scores).max(), 1e-90):
            return flat
        inputs = np.stack([(scores - mean) / spread, np.ones_like(scores)])  # (2, P)
        weights = np.array([0.0, flat.offset])
        for _ in range(100):
            probabilities = _sigmoid(weights @ inputs)
            gradient = inputs @ (probabilities - targets)
            curvature = (inputs * probabilities * (1 - probabilities)) @ inputs.T
            step = np.linalg.solve(curvature + 1e-12 * np.eye(2), gradient)
            loss = _log_loss(weights, inputs, targets)
            while _log_loss(weights - step, inputs, targets) > loss and np.abs(step).max() > 1e-12:
                step = step / 2
            weights = weights - step
            if np.abs(step).max() <= 1e-12:
                break
        slope = weights[0] / spread
        # The loss is convex: where the best slope falls, the best one that does not is 0.
        return cls(float(slope), float(weights[1] - slope * mean)) if slope > 0 else flat


_KINDS: dict[str, type[IsotonicCalibrator] | type[PlattCalibrator]] = {
    kind.kind: kind for kind in (IsotonicCalibrator, PlattCalibrator)
}


def fit_calibrator(
    scores: ArrayLike, right: Sequence[bool] | NDArray[np.bool_], kind: str = "isotonic"
) -> Calibrator:
    """Fit a calibrator on validation masks.

    Args:
        scores: (P,) raw scores, finite, higher for better masks; of any scale.
        right: (P,) whether each mask is right (`is_right`).
        kind: "isotonic" or "platt".

    Raises:
        DataError: There are no masks.
        UsageError: There is no such kind.
        ValueError: A score is not finite, or the lengths differ.
    """
    values, hits = np.asarray(scores, np.float64), np.asarray(right, bool)
    if not same_length(scores=values, right=hits):
        raise DataError(
            "Cannot fit a calibrator on 0 masks.",
            repair="Give validation data with at least one phrase.",
        )
    if not np.isfinite(values).all():
        raise ValueError("a score is not finite")
    return _known(kind).fit(values, hits.astype(np.float64))


def calibrator_from_dict(stored: dict[str, Any]) -> Calibrator:
    """The calibrator that `to_dict` wrote.

    Raises:
        DataError: It is not one.
        UsageError: Its kind is unknown.
    """
    kind = _known(str(stored.get("kind")))
    try:
        if kind is PlattCalibrator:
            slope, offset = float(stored["slope"]), float(stored["offset"])
            if not (slope >= 0 and math.isfinite(slope) and math.isfinite(offset)):
                raise ValueError(f"slope {slope}, offset {offset}")
            return PlattCalibrator(slope, offset)
        scores = np.asarray(stored["scores"], np.float64)
        probabilities = np.asarray(stored["probabilities"], np.float64)
        if not scores.size or scores.shape != probabilities.shape:
            raise ValueError(f"{scores.size} scores, {probabilities.size} probabilities")
        if not (np.isfinite(scores).all() and (np.diff(scores) > 0).all()):
            raise ValueError("the scores do not rise")
        if not ((probabilities >= 0) & (probabilities <= 1)).all():
            raise ValueError("a probability is not between 0 and 1")
        if not (np.diff(probabilities) >= 0).all():
            raise ValueError("the probabilities fall")
        return IsotonicCalibrator(tuple(scores.tolist()), tuple(probabilities.tolist()))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"Cannot read the stored {kind.kind} calibrator.",
            found=f"{type(error).__name__}: {error}",
            repair="Fit it again on validation data.",
        ) from error


def _known(kind: str) -> type[IsotonicCalibrator] | type[PlattCalibrator]:
    if kind not in _KINDS:
        raise UsageError(
            f"Unknown calibrator '{kind}'. {did_you_mean(kind, _KINDS)}".strip(),
            found=f"Known: {', '.join(_KINDS)}.",
        )
    return _KINDS[kind]


def _sigmoid(logits: Floats) -> Floats:
    return np.exp(-np.logaddexp(0, -logits))


def _logit(probability: float) -> float:
    return float(np.log(probability) - np.log1p(-probability))


def _log_loss(weights: Floats, inputs: Floats, targets: Floats) -> float:
    logits = weights @ inputs
    return float((np.logaddexp(0, logits) - targets * logits).sum())
