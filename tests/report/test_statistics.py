"""Intervals and tests against scipy and against counting by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

import flmm_core.report.statistics
from flmm_core.report.statistics import (
    Floats,
    bootstrap_intervals,
    paired_test,
    ratios,
)


def sums(seed: int, pictures: int) -> tuple[Floats, Floats]:
    """Random images: intersections and unions, then IoUs and phrases."""
    rng = np.random.default_rng(seed)
    unions = rng.integers(1, 500, pictures)
    phrases = rng.integers(1, 5, pictures)
    tops = np.stack([rng.integers(0, unions + 1), rng.uniform(0, phrases)], axis=1)
    return tops.astype(np.float64), np.stack([unions, phrases], axis=1).astype(np.float64)


def test_ratios_of_nothing_are_not_numbers() -> None:
    assert_array_equal(ratios(np.array([1.0, 0.0]), np.array([4.0, 0.0])), [0.25, np.nan])


@pytest.mark.parametrize("level", [0.5, 0.95])
def test_intervals_are_those_of_scipy_from_the_same_seed(level: float) -> None:
    (tops, bottoms), (other, _) = sums(1, 30), sums(2, 30)
    other = np.minimum(other, bottoms)

    def ratio(numerators: Floats, denominators: Floats, axis: int) -> Floats:
        return np.asarray(numerators.sum(axis) / denominators.sum(axis))

    def difference(first: Floats, second: Floats, denominators: Floats, axis: int) -> Floats:
        return ratio(second, denominators, axis) - ratio(first, denominators, axis)

    for data, statistic, found in (
        ((tops, bottoms), ratio,
         bootstrap_intervals((tops, bottoms), resamples=400, level=level, seed=5)),
        ((tops, other, bottoms), difference,
         bootstrap_intervals((other, bottoms), (tops, bottoms), resamples=400, level=level,
                              seed=5)),
    ):  # fmt: skip
        expected = stats.bootstrap(
            [part.T for part in data], statistic, paired=True, vectorized=True, axis=-1,
            method="percentile", n_resamples=400, confidence_level=level,
            random_state=np.random.default_rng(5),
        ).confidence_interval  # fmt: skip
        assert_allclose(found, np.stack([expected.low, expected.high], axis=1), rtol=1e-9)


def test_the_interval_is_that_of_all_draws_of_three_images() -> None:
    """All 27 draws with replacement, each as likely: the quantiles of that law."""
    tops, bottoms = sums(9, 3)
    law = np.array(
        [
            tops[list(draw)].sum(0) / bottoms[list(draw)].sum(0)
            for draw in product(range(3), repeat=3)
        ]
    )
    # Levels whose ends lie well within one step of the law, so that chance cannot move them.
    for level in (0.5, 0.7, 0.95):
        found = bootstrap_intervals((tops, bottoms), resamples=20_000, level=level, seed=1)
        for column, ends in enumerate(found):
            for end, at in zip(ends, ((1 - level) / 2, (1 + level) / 2), strict=True):
                low, high = (
                    np.sort(law[:, column])[min(int((at + e) * 27), 26)] for e in (-0.02, 0.02)
                )
                assert low - 1e-9 <= end <= high + 1e-9


def test_a_seed_repeats_and_another_differs() -> None:
    first, second = sums(10, 40), sums(11, 40)
    second = second[0], first[1]
    for draw in (
        lambda seed: bootstrap_intervals(first, resamples=50, seed=seed),
        lambda seed: bootstrap_intervals(second, first, resamples=50, seed=seed),
    ):
        assert_array_equal(draw(4), draw(4))
        assert (draw(4) != draw(5)).any()
    assert_array_equal(
        paired_test(first, second, permutations=50, seed=4),
        paired_test(first, second, permutations=50, seed=4),
    )


def test_little_memory_gives_the_same_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = sums(2, 30), sums(3, 30)
    second = second[0], first[1]
    whole = (
        bootstrap_intervals(first, resamples=200),
        bootstrap_intervals(second, first, resamples=200),
        paired_test(first, second, permutations=200),
    )
    monkeypatch.setattr(flmm_core.report.statistics, "_CHUNK", 70)
    parts = (
        bootstrap_intervals(first, resamples=200),
        bootstrap_intervals(second, first, resamples=200),
        paired_test(first, second, permutations=200),
    )
    for a, b in zip(whole, parts, strict=True):
        assert_allclose(a, b, rtol=1e-12)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        values = rng.beta(2, 1, (60, 1))
        low, high = bootstrap_intervals((values, np.ones((60, 1))), resamples=300, seed=seed)[0]
        held += low <= 2 / 3 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_repeating_phrases_within_their_images_makes_no_score_surer() -> None:
    tops, bottoms = sums(4, 20)
    assert_allclose(
        bootstrap_intervals((tops, bottoms)), bootstrap_intervals((10 * tops, 10 * bottoms))
    )


def test_a_single_image_has_no_interval() -> None:
    tops, bottoms = sums(5, 3)
    bottoms[1:, 1] = 0
    found = bootstrap_intervals((tops, bottoms))
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
    assert np.isnan(bootstrap_intervals((np.zeros((0, 2)), np.zeros((0, 2))))).all()


def test_the_difference_is_of_the_same_images() -> None:
    first = sums(6, 25)
    shifted = first[0] + 0.1 * first[1], first[1]
    assert_allclose(bootstrap_intervals(shifted, first), np.full((2, 2), 0.1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_test_counts_the_exchanges_that_are_at_least_as_far_apart(seed: int) -> None:
    first, second = sums(seed, 9), sums(seed + 50, 9)

    def apart(a: Floats, b: Floats, axis: int) -> Floats:
        """Of images with numerators and denominators, (..., 2, N)."""
        parts = [x[..., 0, :].sum(axis) / x[..., 1, :].sum(axis) for x in (a, b)]
        return np.abs(parts[1] - parts[0])

    found = paired_test(first, second, permutations=40_000)
    for k in range(2):
        a, b = (np.stack([part[:, k] for part in system]) for system in (first, second))
        expected = stats.permutation_test(  # of so few images scipy tries all exchanges
            (a, b), apart, permutation_type="samples", vectorized=True, axis=-1,
            alternative="greater", n_resamples=10_000,
        ).pvalue  # fmt: skip
        assert found[k] == pytest.approx(expected, abs=0.012)


def test_p_values_are_never_zero_and_one_for_equals() -> None:
    tops, bottoms = np.zeros((200, 1)), np.ones((200, 1))
    better = tops + 0.3
    assert paired_test((tops, bottoms), (better, bottoms), permutations=99)[0] == 1 / 100
    assert paired_test((better, bottoms), (better, bottoms), permutations=99)[0] == 1
    assert np.isnan(paired_test((tops, tops), (tops, tops), permutations=9))[0]


def test_the_test_rarely_finds_a_difference_where_there_is_none() -> None:
    rng = np.random.default_rng(1)
    found = []
    for seed in range(200):
        first, second = rng.random((40, 1)), rng.random((40, 1))
        ones = np.ones((40, 1))
        found.append(paired_test((first, ones), (second, ones), permutations=199, seed=seed)[0])
    assert np.mean(np.array(found) <= 0.05) <= 0.09
    assert 0.4 <= np.mean(found) <= 0.6
