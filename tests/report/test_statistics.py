"""Intervals and tests against counting by hand."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

import flmm_core.report.statistics
from flmm_core.report.statistics import (
    Floats,
    bootstrap_difference,
    bootstrap_intervals,
    paired_test,
    ratios,
    sum_by_cluster,
)


def sums(seed: int, pictures: int) -> tuple[Floats, Floats]:
    """Random images: intersections and unions, then IoUs and phrases."""
    rng = np.random.default_rng(seed)
    unions = rng.integers(1, 500, pictures)
    phrases = rng.integers(1, 5, pictures)
    tops = np.stack([rng.integers(0, unions + 1), rng.uniform(0, phrases)], axis=1)
    return tops.astype(np.float64), np.stack([unions, phrases], axis=1).astype(np.float64)


def test_sums_of_images_are_those_of_their_rows() -> None:
    values = np.arange(10).reshape(5, 2)
    assert_array_equal(
        sum_by_cluster(np.array([1, 0, 1, 2, 0]), values), [[2 + 8, 3 + 9], [0 + 4, 1 + 5], [6, 7]]
    )
    assert sum_by_cluster(np.zeros(0, dtype=np.int64), np.zeros((0, 3))).shape == (0, 3)


def test_ratios_of_nothing_are_not_numbers() -> None:
    assert_array_equal(ratios(np.array([1.0, 0.0]), np.array([4.0, 0.0])), [0.25, np.nan])


def test_the_bootstrap_draws_images_and_divides_their_sums() -> None:
    tops, bottoms = sums(1, 7)
    rng = np.random.default_rng(5)
    drawn = []
    for _ in range(400):
        chosen = [int(place) for place in rng.integers(0, 7, 7)]
        drawn.append(
            [sum(tops[i, k] for i in chosen) / sum(bottoms[i, k] for i in chosen) for k in (0, 1)]
        )
    expected = np.percentile(drawn, [2.5, 97.5], axis=0).T
    found = bootstrap_intervals(tops, bottoms, resamples=400, seed=5)
    assert_allclose(found, expected, rtol=1e-12)
    narrow = bootstrap_intervals(tops, bottoms, resamples=400, seed=5, level=0.5)
    assert (narrow[:, 0] >= found[:, 0]).all()
    assert (narrow[:, 1] <= found[:, 1]).all()


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
        found = bootstrap_intervals(tops, bottoms, resamples=20_000, level=level, seed=1)
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
        lambda seed: bootstrap_intervals(*first, resamples=50, seed=seed),
        lambda seed: bootstrap_difference(first, second, resamples=50, seed=seed),
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
        bootstrap_intervals(*first, resamples=200),
        bootstrap_difference(first, second, resamples=200),
        paired_test(first, second, permutations=200),
    )
    monkeypatch.setattr(flmm_core.report.statistics, "_CHUNK", 70)
    parts = (
        bootstrap_intervals(*first, resamples=200),
        bootstrap_difference(first, second, resamples=200),
        paired_test(first, second, permutations=200),
    )
    for a, b in zip(whole, parts, strict=True):
        assert_allclose(a, b, rtol=1e-12)


def test_the_interval_holds_the_true_mean_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        values = rng.beta(2, 1, (60, 1))
        low, high = bootstrap_intervals(values, np.ones((60, 1)), resamples=300, seed=seed)[0]
        held += low <= 2 / 3 <= high
    assert 0.90 <= held / 200 <= 0.99


def test_repeating_phrases_within_their_images_makes_no_score_surer() -> None:
    tops, bottoms = sums(4, 20)
    assert_allclose(
        bootstrap_intervals(tops, bottoms), bootstrap_intervals(10 * tops, 10 * bottoms)
    )


def test_a_single_image_has_no_interval() -> None:
    tops, bottoms = sums(5, 3)
    bottoms[1:, 1] = 0
    found = bootstrap_intervals(tops, bottoms)
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()
    assert np.isnan(bootstrap_intervals(np.zeros((0, 2)), np.zeros((0, 2)))).all()


def test_the_difference_is_of_the_same_images() -> None:
    first = sums(6, 25)
    shifted = first[0] + 0.1 * first[1], first[1]
    assert_allclose(bootstrap_difference(first, shifted), np.full((2, 2), 0.1))
    rng = np.random.default_rng(7)
    second, drawn = (sums(8, 25)[0], first[1]), []
    for _ in range(300):
        i = rng.integers(0, 25, 25)
        drawn.append(
            second[0][i].sum(0) / second[1][i].sum(0) - first[0][i].sum(0) / first[1][i].sum(0)
        )
    assert_allclose(
        bootstrap_difference(first, second, resamples=300, seed=7),
        np.percentile(drawn, [2.5, 97.5], axis=0).T,
        rtol=1e-9,
    )


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_test_counts_the_exchanges_that_are_at_least_as_far_apart(seed: int) -> None:
    first, second = sums(seed, 9), sums(seed + 50, 9)

    def apart(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> Floats:
        return np.asarray(b[0].sum(0) / b[1].sum(0) - a[0].sum(0) / a[1].sum(0))

    observed = np.abs(apart(first, second))
    extreme = np.zeros(2)
    for kept in product((True, False), repeat=9):
        mask = np.array(kept)[:, None]
        a = tuple(np.where(mask, x, y) for x, y in zip(first, second, strict=True))
        b = tuple(np.where(mask, y, x) for x, y in zip(first, second, strict=True))
        extreme += np.abs(apart((a[0], a[1]), (b[0], b[1]))) >= observed - 1e-12
    found = paired_test(first, second, permutations=40_000)
    assert_allclose(found, extreme / 2**9, atol=0.012)


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
