"""Bootstrap intervals over images, and a paired permutation test. No torch.

Phrases of one image are not independent, so images are resampled, never phrases (cluster
bootstrap; Davison and Hinkley 1997). Every score is a ratio of sums over phrases, so each image
is reduced to its sums. Letters: N images, K scores.

`scipy.stats` gives the same intervals from the same seed, but resamples arrays where one matrix
product does, and leaves no interval where a single draw is undefined: for 5,000 images and 12
scores its bootstrap takes 10 times as long and its permutation test 80 times.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Sums = tuple[Floats, Floats]
"""Numerators and denominators, (N, K) each, one row per image."""

_CHUNK = 1_000_000
"""Random numbers held at a time, so that memory does not grow with the number of draws."""


def ratios(numerators: Floats, denominators: Floats) -> Floats:
    """Elementwise, nan where the denominator is 0."""
    safe = np.where(denominators == 0, 1, denominators)
    return np.where(denominators == 0, np.nan, numerators / safe)


def bootstrap_intervals(
    sums: Sums,
    minus: Sums | None = None,
    *,
    resamples: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Floats:
    """Percentile intervals of a system's scores, or of their difference to another system's.

    Args:
        sums: Of the system.
        minus: Of the other, for the same images in the same order; each draw takes the same
            images of both.
        resamples: How often N images are drawn with replacement.
        level: Share of the draws inside the interval.
        seed: The same seed draws the same images.

    Returns:
        (K, 2) lower and upper ends; nan for a score with fewer than two images.
    """
    counted = sums[1] != 0
    if minus is not None:
        counted &= minus[1] != 0
    enough = np.count_nonzero(counted, axis=0) >= 2
    ends = np.full((len(enough), 2), np.nan)
    if not enough.any():
        return ends
    rng, images, draws = np.random.default_rng(seed), len(counted), []
    for size in _chunks(resamples, images):
        drawn = rng.integers(0, images, size=(size, images)) + np.arange(size)[:, None] * images
        weights = np.bincount(drawn.ravel(), minlength=size * images)
        weights = weights.reshape(size, images).astype(np.float64)  # how often each is drawn
        scores = ratios(weights @ sums[0], weights @ sums[1])
        if minus is not None:
            scores -= ratios(weights @ minus[0], weights @ minus[1])
        draws.append(scores[:, enough])
    tail = 50 * (1 - level)
    ends[enough] = np.nanpercentile(np.concatenate(draws), [tail, 100 - tail], axis=0).T
    return ends


def paired_test(first: Sums, second: Sums, *, permutations: int = 10000, seed: int = 0) -> Floats:
    """Two-sided p-values of "the systems are the same": exchange them image by image.

    For a mean this is the sign-flip test. The observed assignment counts as one of the draws (the
    +1 correction), so p is never 0. `first` and `second` are of the same images in the same order;
    the same seed draws the same exchanges.

    Returns:
        (K,) in (0, 1]; 1 for two equal systems, nan where a score is not defined.
    """
    observed = ratios(second[0].sum(0), second[1].sum(0)) - ratios(first[0].sum(0), first[1].sum(0))
    # An exchange that reproduces the observed difference must not miss it by rounding.
    reach = np.abs(observed) - 1e-12
    at_least = np.zeros(len(observed))
    rng = np.random.default_rng(seed)
    totals = [first[part].sum(0) + second[part].sum(0) for part in (0, 1)]
    for size in _chunks(permutations, len(first[0])):
        kept = rng.integers(0, 2, size=(size, len(first[0]))).astype(np.float64)
        top, bottom = (kept @ (a - b) + b.sum(0) for a, b in zip(first, second, strict=True))
        exchanged = ratios(totals[0] - top, totals[1] - bottom) - ratios(top, bottom)
        at_least += (~(np.abs(exchanged) < reach)).sum(0)
    return np.where(np.isnan(observed), np.nan, (1 + at_least) / (1 + permutations))


def _chunks(total: int, width: int) -> Iterator[int]:
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, total, step):
        yield min(step, total - start)
