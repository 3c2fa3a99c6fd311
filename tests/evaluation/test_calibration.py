from __future__ import annotations

import json
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from flmm_core.evaluation.calibration import fit_isotonic, fit_platt
from flmm_core.evaluation.reliability import Reliability
from flmm_core.evaluation.scores import reaches
from flmm_core.pipeline.confidence import Confidence, Isotonic, Platt
from tests.evaluation.cases import CASES

PROBABILITIES = st.floats(0, 1) | st.integers(0, 15).map(lambda k: k / 15)
SCORES = st.integers(-4, 4) | st.floats(-4, 4, width=32)
LABELLED = st.lists(st.tuples(SCORES, st.booleans()), min_size=1, max_size=12)
FITS = (fit_isotonic, fit_platt)
Fit = Callable[[Any, Any], Isotonic | Platt]


def reliability(probabilities: list[float], right: list[bool], bins: int = 15) -> Reliability:
    found = Reliability([0] * bins)
    for probability, hit in zip(probabilities, right, strict=True):
        found.add(probability, hit)
    return found


def ece_by_definition(probabilities: list[float], right: list[bool], bins: int) -> float:
    total = Fraction(0)
    for place in range(bins):
        low, high = Fraction(place, bins), Fraction(place + 1, bins)
        members = [
            (Fraction(p), hit)
            for p, hit in zip(probabilities, right, strict=True)
            if low <= Fraction(p) < high or (place == bins - 1 and p == 1)
        ]
        if members:
            confidence = sum((p for p, _ in members), Fraction(0)) / len(members)
            accuracy = Fraction(sum(hit for _, hit in members), len(members))
            total += abs(accuracy - confidence) * len(members)
    return float(total / len(probabilities))


@settings(deadline=None)
@given(st.lists(st.tuples(PROBABILITIES, st.booleans()), min_size=1), st.sampled_from([1, 10, 15]))
def test_the_error_is_that_of_the_definition(rows: list[tuple[float, bool]], bins: int) -> None:
    probabilities, right = map(list, zip(*rows, strict=True))
    scores = reliability(probabilities, right, bins)
    assert scores.error == pytest.approx(ece_by_definition(probabilities, right, bins), abs=1e-12)


def test_the_error_is_that_of_the_definition_in_a_thousand_more_cases() -> None:
    rng = np.random.default_rng(10)
    for _ in range(CASES):
        count = int(rng.integers(1, 12))
        probabilities = np.where(
            rng.random(count) < 0.5, rng.random(count), rng.integers(0, 16) / 15
        )
        right = rng.random(count) < probabilities
        scores = reliability(probabilities.tolist(), right.tolist())
        expected = ece_by_definition(probabilities.tolist(), right.tolist(), 15)
        assert scores.error == pytest.approx(expected, abs=1e-12)


def test_the_error_in_json() -> None:
    assert reliability([], [], 4).to_dict() == {"ece": None, "masks": 0, "bins": []}
    scores = reliability([0.25, 0.375, 1.0], [True, False, True], 4)
    assert json.loads(json.dumps(scores.to_dict())) == {
        "ece": (2 * (0.5 - 0.3125)) / 3,
        "masks": 3,
        "bins": [
            {"from": 0.25, "to": 0.5, "masks": 2, "mean_probability": 0.3125, "share_right": 0.5},
            {"from": 0.75, "to": 1.0, "masks": 1, "mean_probability": 1.0, "share_right": 1.0},
        ],
    }


@settings(deadline=None)
@given(LABELLED)
def test_isotonic_is_the_best_non_decreasing_fit(rows: list[tuple[float, bool]]) -> None:
    """By its closed form: the highest lower mean of runs, over runs of distinct scores."""
    scores, right = map(np.array, zip(*rows, strict=True))
    values = sorted(set(scores.tolist()))
    groups = [right[scores == value] for value in values]
    expected = [
        max(
            min(float(np.concatenate(groups[j : k + 1]).mean()) for k in range(i, len(values)))
            for j in range(i + 1)
        )
        for i in range(len(values))
    ]
    fitted = fit_isotonic(scores, right)
    assert fitted(values) == pytest.approx(expected, abs=1e-12)
    assert fitted([values[0] - 1, values[-1] + 1]) == pytest.approx([expected[0], expected[-1]])


@settings(deadline=None)
@given(LABELLED)
def test_platt_is_the_likeliest_rising_sigmoid(rows: list[tuple[float, bool]]) -> None:
    scores, right = np.array([s for s, _ in rows], float), np.array([r for _, r in rows])
    hits = right.sum()
    targets = np.where(right, (hits + 1) / (hits + 2), 1 / (len(right) - hits + 2))

    def loss(slope: float, offset: float) -> float:
        logits = slope * (scores - scores.mean()) + offset
        return float((np.logaddexp(0, logits) - targets * logits).sum())

    fitted = fit_platt(scores, right)
    slope, offset = fitted.slope, fitted.offset + fitted.slope * scores.mean()
    assert slope >= 0
    best = loss(slope, offset)
    for move in (1e-3, 1e-1):
        for other in (slope + move, slope - move, slope * (1 + move), slope * (1 - move), slope):
            for beside in (offset - move, offset, offset + move):
                if other >= 0:
                    assert best <= loss(other, beside) + 1e-9


@pytest.mark.parametrize("fit", FITS)
@settings(deadline=None)
@given(rows=LABELLED)
def test_probabilities_never_fall_and_survive_json(
    fit: Fit, rows: list[tuple[float, bool]]
) -> None:
    scores, right = map(np.array, zip(*rows, strict=True))
    fitted = fit(scores, right)
    at = np.linspace(-6, 6, 101)
    probabilities = fitted(at)
    assert probabilities.shape == at.shape
    assert (np.diff(probabilities) >= -1e-15).all()
    assert ((probabilities >= 0) & (probabilities <= 1)).all()
    again = type(fitted).model_validate_json(json.dumps(fitted.model_dump(mode="json")))
    assert again == fitted
    assert (again(at) == probabilities).all()


@pytest.mark.parametrize("fit", FITS)
def test_calibrated_probabilities_are_nearer_the_truth_than_raw_scores(fit: Fit) -> None:
    rng = np.random.default_rng(11)
    logits = rng.normal(size=(2, 4000))
    right = rng.random(logits.shape) < 1 / (1 + np.exp(-logits))
    raw = 1 / (1 + np.exp(-4 * logits - 1))  # too sure, and too high
    fitted = fit(raw[0], right[0])
    before = reliability(raw[1].tolist(), right[1].tolist())
    after = reliability(fitted(raw[1]).tolist(), right[1].tolist())
    assert after.error < before.error / 2
    if fit is fit_isotonic:
        assert after.error < 0.05


def test_what_is_right() -> None:
    counts = [(1, 2), (1, 3), (0, 0), (0, 5)]
    assert [reaches(*pair) for pair in counts] == [True, False, False, False]


@pytest.mark.parametrize("probability", [1.5, -0.1, math.nan])
def test_other_numbers_are_no_probabilities(probability: float) -> None:
    with pytest.raises(ValueError, match=f"a probability of {probability}"):
        Reliability().add(probability, True)


@pytest.mark.parametrize(
    "stored",
    [
        {"kind": "platt", "slope": -1, "offset": 0},
        {"kind": "platt", "slope": 1},
        {"kind": "platt", "slope": 1, "offset": math.nan},
        {"kind": "isotonic", "scores": [], "probabilities": []},
        {"kind": "isotonic", "scores": [0, 0], "probabilities": [0, 1]},
        {"kind": "isotonic", "scores": [0, 1], "probabilities": [0, 2]},
        {"kind": "isotonic", "scores": [0, 1], "probabilities": [0]},
        {"kind": "isotonic", "scores": [0, math.nan], "probabilities": [0, 1]},
    ],
)
def test_a_broken_calibrator_is_refused(stored: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Confidence.model_validate({"masks": 9, "calibrator": stored, "not_there": None})
