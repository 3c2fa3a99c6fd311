"""How sure a score is: bootstrap intervals over images, and a paired test. No torch.

Phrases of one image are not independent, so images are drawn, never phrases. Every score of
the field is a ratio of sums (cIoU: intersections over unions; mIoU: IoUs over phrases), so all
that is needed of an image is its share of the numerators and denominators. Letters: N images,
K scores.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

RESAMPLES = 2000
PERMUTATIONS = 10000
LEVEL = 0.95
_CHUNK = 1_000_000
"""Random numbers held at a time, so that memory does not grow with the number of draws."""


def sum_by_cluster(clusters: NDArray[np.int64], values: ArrayLike) -> Floats:
    """Add up rows of one image.

    Args:
        clusters: (M,) the number of each row's image, in [0, N).
        values: (M, K).

    Returns:
        (N, K); exact for integers below 2^53.
    """
    rows = np.asarray(values, dtype=np.float64)
    count = int(clusters.max()) + 1 if len(clusters) else 0
    sums = np.zeros((count, rows.shape[1]))
    np.add.at(sums, clusters, rows)
    return sums


def ratios(numerators: Floats, denominators: Floats) -> Floats:
    """Elementwise, nan where the denominator is 0."""
    safe = np.where(denominators == 0, 1, denominators)
    return np.where(denominators == 0, np.nan, numerators / safe)


def bootstrap_intervals(
    numerators: Floats,
    denominators: Floats,
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Floats:
    """Percentile intervals of ratios of sums over images (cluster bootstrap).

    Args:
        numerators: (N, K), a row an image.
        denominators: (N, K).
        resamples: How often N images are drawn with replacement.
        level: The share of the draws that lies within.
        seed: The same seed draws the same images.

    Returns:
        (K, 2) lower and upper ends; nan for a score that fewer than two images have part in.
    """
    draws = [
        ratios(weights @ numerators, weights @ denominators)
        for weights in _bootstrap_weights(len(numerators), resamples, seed)
    ]
    return _percentiles(draws, np.count_nonzero(denominators, axis=0), level)


def bootstrap_difference(
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> Floats:
    """Percentile intervals of the second's ratios minus the first's, on the same images.

    Args:
        first: Numerators and denominators, (N, K) each.
        second: The same of the other system, the same images in the same order.
        resamples: As in `bootstrap_intervals`; each draw serves both systems.
        level: As there.
        seed: As there.

    Returns:
        (K, 2) lower and upper ends; nan as there.
    """
    draws = [
        ratios(weights @ second[0], weights @ second[1])
        - ratios(weights @ first[0], weights @ first[1])
        for weights in _bootstrap_weights(len(first[0]), resamples, seed)
    ]
    counted = np.count_nonzero((first[1] != 0) & (second[1] != 0), axis=0)
    return _percentiles(draws, counted, level)


def paired_test(
    first: tuple[Floats, Floats],
    second: tuple[Floats, Floats],
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Floats:
    """Two-sided p-values of "both systems are the same": exchange them image by image.

    For a mean this is the sign-flip test. The given assignment counts as one of the draws (the +1
    correction), so p is never 0 and never too small.

    Args:
        first: Numerators and denominators, (N, K) each.
        second: The same of the other system, the same images in the same order.
        permutations: How many random exchanges are drawn.
        seed: The same seed draws the same exchanges.

    Returns:
        (K,) in (0, 1]; 1 for two equal systems, nan where a score is not defined.
    """
    observed = ratios(second[0].sum(0), second[1].sum(0)) - ratios(first[0].sum(0), first[1].sum(0))
    # An exchange that gives back the observed difference must not miss it by rounding.
    reach = np.abs(observed) - 1e-12
    counts, width = len(first[0]), second[0].shape[1]
    at_least = np.zeros(width)
    rng = np.random.default_rng(seed)
    totals = [first[part].sum(0) + second[part].sum(0) for part in (0, 1)]
    for size in _chunks(permutations, counts):
        kept = rng.integers(0, 2, size=(size, counts)).astype(np.float64)
        numerators = kept @ (first[0] - second[0]) + second[0].sum(0)
        denominators = kept @ (first[1] - second[1]) + second[1].sum(0)
        exchanged = ratios(totals[0] - numerators, totals[1] - denominators) - ratios(
            numerators, denominators
        )
        at_least += (~(np.abs(exchanged) < reach)).sum(0)
    return np.where(np.isnan(observed), np.nan, (1 + at_least) / (1 + permutations))


def _bootstrap_weights(count: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each of N images is drawn: (draws, N), together `resamples` draws."""
    rng = np.random.default_rng(seed)
    for size in _chunks(resamples, count) if count else ():
        drawn = rng.integers(0, count, size=(size, count))
        drawn += np.arange(size)[:, None] * count
        weights = np.bincount(drawn.ravel(), minlength=size * count)
        yield weights.reshape(size, count).astype(np.float64)


def _chunks(total: int, width: int) -> Iterator[int]:
    step = max(1, _CHUNK // max(1, width))
    for start in range(0, total, step):
        yield min(step, total - start)


def _percentiles(draws: list[Floats], counted: NDArray[np.int64], level: float) -> Floats:
    """(K, 2) of all draws, nan where fewer than two images are counted."""
    ends = np.full((len(counted), 2), np.nan)
    enough = counted >= 2
    if enough.any():
        tail = 50 * (1 - level)
        values = np.concatenate(draws)[:, enough]
        ends[enough] = np.nanpercentile(values, [tail, 100 - tail], axis=0).T
    return ends
