"""Fits the confidence of a head: from a mask's evidence to its probability of being right.

A mask is right if its IoU is at least 0.5; 0/0 is not right.

    isotonic  non-decreasing least-squares fit by pool-adjacent-violators (Zadrozny and Elkan,
              KDD 2002); needs about 1,000 masks
    platt     sigmoid(slope * score + offset), maximum likelihood with smoothed targets (Platt
              1999), slope >= 0; for fewer masks
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import isotonic_regression, minimize

from flmm_core.errors import DataError
from flmm_core.evaluation.not_there import choose_threshold
from flmm_core.evaluation.phrase_rows import PhraseRow
from flmm_core.evaluation.scores import reaches
from flmm_core.pipeline.confidence import Confidence, Isotonic, Platt
from flmm_core.pipeline.types import Grounding

ENOUGH = 1000
"""Isotonic regression from this many masks on, Platt scaling below."""


@dataclass
class Judgements:
    """Of each mask: its evidence, whether it is right, and whether its phrase has no target."""

    evidence: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    absent: list[bool] = field(default_factory=list)

    @classmethod
    def union(cls, parts: Iterable[Judgements]) -> Judgements:
        """Those of all parts; their order does not matter."""
        found = cls()
        for part in parts:
            found.evidence += part.evidence
            found.right += part.right
            found.absent += part.absent
        return found

    def add(self, grounding: Grounding, rows: Sequence[PhraseRow]) -> None:
        """Add a sample."""
        self.evidence += grounding.evidence.tolist()
        self.right += (reaches(row.intersection, row.union) for row in rows)
        self.absent += (not row.truth for row in rows)


def fit_confidence(judged: Judgements) -> Confidence:
    """Fit on the masks of validation data.

    Raises:
        DataError: There are no masks.
    """
    masks = len(judged.evidence)
    if not masks:
        raise DataError(
            "Cannot fit a calibrator on 0 masks.",
            repair="Give validation data with at least one phrase.",
        )
    fit = fit_isotonic if masks >= ENOUGH else fit_platt
    # Sorted, so that the last bits of sums do not depend on who judged which masks.
    rows = sorted(zip(judged.evidence, judged.right, judged.absent, strict=True))
    evidence, right, absent = zip(*rows, strict=True)
    calibrator = fit(evidence, right)
    not_there = choose_threshold(calibrator(evidence), absent)
    return Confidence(masks=masks, calibrator=calibrator, not_there=not_there)


def fit_isotonic(scores: ArrayLike, right: ArrayLike) -> Isotonic:
    """Isotonic regression on (P,) finite scores of any scale and (P,) bools."""
    values, place = np.unique(np.asarray(scores, np.float64), return_inverse=True)
    counts = np.bincount(place)
    shares = np.bincount(place, weights=np.asarray(right, np.float64)) / counts
    fitted = isotonic_regression(shares, weights=counts)
    ends = np.unique([fitted.blocks[:-1], fitted.blocks[1:] - 1])  # each block's first and last
    return Isotonic(
        scores=tuple(values[ends].tolist()),
        probabilities=tuple(fitted.x[ends].clip(0, 1).tolist()),
    )


def fit_platt(scores: ArrayLike, right: ArrayLike) -> Platt:
    """Platt scaling; arguments as in `fit_isotonic`."""
    values, hits = np.asarray(scores, np.float64), np.asarray(right, bool)
    # Neither 0 nor 1, so that the fit stays finite where scores separate right from wrong.
    targets = np.where(hits, (hits.sum() + 1) / (hits.sum() + 2), 1 / ((~hits).sum() + 2))
    mean, spread = values.mean(), values.std()
    start = np.array([0.0, np.log(targets.mean()) - np.log1p(-targets.mean())])
    # Practically equal scores carry no information, and their slope would overflow.
    if spread <= 1e-9 * max(np.abs(values).max(), 1e-90):
        return Platt(slope=0.0, offset=start[1])
    inputs = np.stack([(values - mean) / spread, np.ones_like(values)])  # (2, P)

    def loss(weights: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Mean cross-entropy and its gradient."""
        logits = weights @ inputs
        probabilities = np.exp(-np.logaddexp(0, -logits))
        value = float((np.logaddexp(0, logits) - targets * logits).mean())
        return value, inputs @ (probabilities - targets) / len(values)

    found = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)],
        options={"ftol": 0, "gtol": 1e-12},
    )  # fmt: skip
    slope = found.x[0] / spread
    return Platt(slope=slope, offset=found.x[1] - slope * mean)
