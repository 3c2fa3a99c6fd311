"""Phrases that name nothing: the threshold against every other one, and the area by pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from flmm_core.evaluation.not_there import Separation, choose_threshold

CASES = 1000


def mean_accuracy(threshold: float, probabilities: list[float], absent: list[bool]) -> float:
    """The mean of N-acc and T-acc if masks below the threshold are withheld."""
    withheld = [p < threshold for p, none in zip(probabilities, absent, strict=True) if none]
    given = [p >= threshold for p, none in zip(probabilities, absent, strict=True) if not none]
    return (sum(withheld) / len(withheld) + sum(given) / len(given)) / 2


def test_no_threshold_is_better_and_no_lower_one_as_good_in_a_thousand_cases() -> None:
    rng = np.random.default_rng(12)
    for _ in range(CASES):
        count = int(rng.integers(2, 9))
        absent = (np.arange(count) % 2 == 1).tolist()
        probabilities = (rng.integers(0, 5, count) / 4).tolist()
        chosen = choose_threshold(probabilities, absent)
        assert chosen is not None
        best = mean_accuracy(chosen.threshold, probabilities, absent)
        assert chosen.value == pytest.approx(best, abs=1e-9)
        assert chosen.without == pytest.approx(mean_accuracy(0.0, probabilities, absent), abs=1e-9)
        assert (chosen.quantity, chosen.samples) == ("balanced", count)
        for threshold in (0.0, 0.125, 0.375, 0.625, 0.875, 1.125):
            other = mean_accuracy(threshold, probabilities, absent)
            separates_fewer = sum(p < threshold for p in probabilities) < sum(
                p < chosen.threshold for p in probabilities
            )
            assert other < best - 1e-12 if separates_fewer else other <= best + 1e-9


def test_without_a_gain_nothing_is_withheld() -> None:
    chosen = choose_threshold([0.9, 0.1], [True, False])
    assert chosen is not None
    assert (chosen.threshold, chosen.value, chosen.without) == (0.0, 0.5, 0.5)


def test_adjacent_floats_are_separated() -> None:
    low = 0.3
    high = math.nextafter(low, 1)
    chosen = choose_threshold([low, high], [True, False])
    assert chosen is not None
    assert low < chosen.threshold <= high
    assert chosen.value == 1


def test_both_kinds_of_phrases_are_needed() -> None:
    assert choose_threshold([0.5], [False]) is None
    assert choose_threshold([0.5], [True]) is None
    assert choose_threshold([], []) is None


def test_the_area_under_the_roc_curve_counts_every_pair_in_a_thousand_cases() -> None:
    rng = np.random.default_rng(5)
    for _ in range(CASES):
        separation = Separation()
        there, absent = rng.integers(0, 5, (2, int(rng.integers(1, 9)))) / 4
        for probability in there:
            separation.add(float(probability), there=True)
        for probability in absent:
            separation.add(float(probability), there=False)
        pairs = [(p > q) + 0.5 * (p == q) for p in there for q in absent]
        assert separation.auroc == pytest.approx(sum(pairs) / len(pairs), abs=1e-12)
        other = mannwhitneyu(there, absent).statistic / len(pairs)
        assert separation.auroc == pytest.approx(other, abs=1e-12)


def test_one_kind_of_phrases_has_no_area() -> None:
    assert math.isnan(Separation([0.5], []).auroc)
    assert math.isnan(Separation([], [0.5]).auroc)
