from __future__ import annotations

import json
import math

import numpy as np
import pytest

from flmm_core.errors import DataError, UsageError
from flmm_core.evaluation.metrics import GeneralisedScores, choose_threshold
from tests.evaluation.metrics.cases import CASES


def at(threshold: float, probabilities: list[float], counts: np.ndarray) -> GeneralisedScores:
    """gRefCOCO's scores if masks below the threshold are withheld."""
    scores = GeneralisedScores()
    scores.add_counts(
        counts[0],
        counts[1],
        no_target=counts[2].astype(bool),
        says_none=[p < threshold for p in probabilities],
    )
    return scores


@pytest.mark.parametrize("quantity", ["giou", "balanced"])
def test_no_threshold_is_better_in_a_thousand_cases(quantity: str) -> None:
    """Against every threshold that parts the samples differently, by gRefCOCO's own scores."""
    rng = np.random.default_rng(12)
    for _ in range(CASES):
        count = int(rng.integers(2, 9))
        unions = rng.integers(1, 6, count)
        none = np.arange(count) % 2 if quantity == "balanced" else rng.integers(0, 2, count)
        counts = np.stack([np.where(none, 0, rng.integers(0, unions + 1)), unions, none])
        probabilities = (rng.integers(0, 5, count) / 4).tolist()

        def value(
            threshold: float, p: list[float] = probabilities, c: np.ndarray = counts
        ) -> float:
            scores = at(threshold, p, c)
            return scores.giou if quantity == "giou" else (scores.n_acc + scores.t_acc) / 2

        chosen = choose_threshold(probabilities, counts[0] / counts[1], none, quantity=quantity)
        assert chosen.value == pytest.approx(value(chosen.threshold), abs=1e-9)
        assert chosen.without == pytest.approx(value(0.0), abs=1e-9)
        lower = [t for t in (0.0, 0.125, 0.375, 0.625, 0.875, 1.125) if t < chosen.threshold - 1e-6]
        for threshold in (0.0, 0.125, 0.375, 0.625, 0.875, 1.125):
            assert value(threshold) <= chosen.value + 1e-9
        # Of equally good ones the lowest is taken.
        same = at(chosen.threshold, probabilities, counts)
        for threshold in lower:
            if at(threshold, probabilities, counts) != same:
                assert value(threshold) < chosen.value - 1e-12


def test_without_a_gain_nothing_is_withheld() -> None:
    chosen = choose_threshold([0.1, 0.9], [0.3, 0.8], [False, False])
    assert json.loads(json.dumps(chosen.to_dict())) == {
        "threshold": 0.0,
        "quantity": "giou",
        "value": 0.55,
        "without": 0.55,
        "samples": 2,
    }


def test_where_nothing_is_ever_there_nothing_is_answered() -> None:
    chosen = choose_threshold([0.1, 1.0], [0.0, 0.0], [True, True])
    assert chosen.value == 1
    assert chosen.threshold > 1


def test_neighbouring_floats_are_parted() -> None:
    low = 0.3
    high = math.nextafter(low, 1)
    chosen = choose_threshold([low, high], [0.0, 1.0], [True, False])
    assert low < chosen.threshold <= high
    assert chosen.value == 1


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="a probability is not between 0 and 1"):
        choose_threshold([2.0], [0.5], [False])
    with pytest.raises(ValueError, match="an IoU is not between 0 and 1"):
        choose_threshold([0.5], [math.nan], [False])
    with pytest.raises(ValueError, match="1 masks, but 2 ious"):
        choose_threshold([0.5], [0.5, 0.5], [False])
    with pytest.raises(DataError) as one_kind:
        choose_threshold([0.5], [0.5], [False], quantity="balanced")
    assert str(one_kind.value) == (
        "Cannot choose a threshold for 'not there' by balanced.\n"
        "1 validation samples with a target, 0 without.\n"
        "Give validation data with both kinds."
    )
    with pytest.raises(DataError, match="0 validation samples with a target, 0 without"):
        choose_threshold([], [], [])
    with pytest.raises(UsageError) as unknown:
        choose_threshold([0.5], [0.5], [False], quantity="balance")
    assert str(unknown.value) == (
        "Unknown quantity 'balance'. Did you mean 'balanced'?\nKnown: giou, balanced."
    )
