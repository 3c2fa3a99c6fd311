"""Random masks, many of them empty, equal or nearly so, and IoUs by the definition."""

from __future__ import annotations

from fractions import Fraction

import numpy as np

CASES = 1000
Mask = np.ndarray


def random_masks(rng: np.random.Generator, count: int | None = None) -> tuple[Mask, Mask]:
    """(P, H, W) predictions and truths."""
    count = int(rng.integers(0, 6)) if count is None else count
    shape = (count, int(rng.integers(1, 5)), int(rng.integers(1, 6)))
    density = rng.choice([0.0, 0.1, 0.5, 1.0], size=(2, count, 1, 1))
    pred, truth = rng.random((2, *shape)) < density
    same = rng.random(count) < 0.2
    pred[same] = truth[same]
    return pred, truth


def pixel_by_pixel(pred: Mask, truth: Mask) -> tuple[int, int]:
    """Intersection and union of one (H, W) pair, in plain Python."""
    both = either = 0
    for row, other_row in zip(pred.tolist(), truth.tolist(), strict=True):
        for p, t in zip(row, other_row, strict=True):
            both += p and t
            either += p or t
    return both, either


def fraction(intersection: int, union: int, nothing: int = 0) -> Fraction:
    """The IoU as an exact fraction; `nothing` for 0/0."""
    return Fraction(intersection, union) if union else Fraction(nothing)


def mean(values: list[Fraction]) -> float:
    return float(sum(values, Fraction(0)) / len(values)) if values else float("nan")


def ratio(part: float, whole: float) -> float:
    return part / whole if whole else float("nan")
