"""One process, two or many, in whatever order: the numbers are the same to the last bit."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_core.evaluation.metrics import (
    BoxScores,
    CalibrationScores,
    GeneralisedScores,
    IouSums,
    MaskScores,
    PointScores,
    ReasonScores,
    RecallScores,
)

Row = tuple[int, int, bool, bool, float]
"""Intersection, union, two facts about the mask and a probability."""


def add_masks(scores: MaskScores, row: Row) -> None:
    scores.add_counts([row[0]], [row[1]], ["small" if row[2] else ""])


def add_generalised(scores: GeneralisedScores, row: Row) -> None:
    intersection = 0 if row[2] else row[0]
    scores.add_counts([intersection], [row[1]], no_target=[row[2]], says_none=[row[3]])


def add_reasoning(scores: ReasonScores, row: Row) -> None:
    scores.add_counts([row[0]], [row[1]])


def add_recall(scores: RecallScores, row: Row) -> None:
    scores.add_counts([row[0]], [row[1]], [row[2]], [row[3]])


def add_boxes(scores: BoxScores, row: Row) -> None:
    scores.add(np.array([[0, 0, row[0], 1]]), np.array([[0, 0, row[1], 1]]))


def add_points(scores: PointScores, row: Row) -> None:
    scores.add(np.array([[row[0], 0]]), np.array([[[row[2], row[3]]]]))


def add_probabilities(scores: CalibrationScores, row: Row) -> None:
    scores.add([row[4]], [row[2]])


KINDS: list[tuple[type[Any], Callable[[Any, Row], None]]] = [
    (MaskScores, add_masks),
    (GeneralisedScores, add_generalised),
    (ReasonScores, add_reasoning),
    (RecallScores, add_recall),
    (BoxScores, add_boxes),
    (PointScores, add_points),
    (CalibrationScores, add_probabilities),
]

ROWS = st.lists(
    st.tuples(
        st.integers(0, 10**6), st.integers(0, 10**6), st.booleans(), st.booleans(), st.floats(0, 1)
    ).map(lambda row: (min(row[:2]), max(row[:2]), *row[2:])),
    max_size=12,
)


@pytest.mark.parametrize(("kind", "add"), KINDS, ids=[kind.__name__ for kind, _ in KINDS])
@settings(deadline=None)
@given(rows=ROWS, processes=st.integers(1, 5), data=st.data())
def test_the_numbers_do_not_depend_on_order_or_processes(
    kind: type[Any], add: Callable[[Any, Row], None], rows: list[Row], processes: int, data: Any
) -> None:
    whole, parts = kind(), [kind() for _ in range(processes)]
    for row in rows:
        add(whole, row)
    for row in data.draw(st.permutations(rows)):
        add(data.draw(st.sampled_from(parts)), row)
    merged = kind()
    for part in data.draw(st.permutations(parts)):
        merged.merge(pickle.loads(pickle.dumps(part)))
    assert merged == whole
    assert json.dumps(merged.to_dict()) == json.dumps(whole.to_dict())


def test_a_float_sum_would_depend_on_the_order() -> None:
    """What the exact sums are for: these IoUs, added as floats, give two sums."""
    pairs = [(1, 10), (1, 5), (3, 10)]
    assert sum(i / u for i, u in pairs) != sum(i / u for i, u in reversed(pairs))
    sums = [MaskScores(), MaskScores()]
    sums[0].add_counts(*zip(*pairs, strict=True))
    sums[1].add_counts(*zip(*reversed(pairs), strict=True))
    assert sums[0].miou == sums[1].miou == float(Fraction(6, 10) / 3)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000).map(lambda u: (u // 3, u)), min_size=1, max_size=300))
def test_the_mean_is_within_2_to_the_minus_64_of_the_true_one(pairs: list[tuple[int, int]]) -> None:
    scores = MaskScores()
    scores.add_counts(*zip(*pairs, strict=True))
    true = sum((Fraction(i, u) if u else Fraction(0) for i, u in pairs), Fraction(0)) / len(pairs)
    kept = Fraction(scores.iou_units, len(pairs) * 2**64)
    assert 0 <= true - kept < Fraction(1, 2**64)


def test_memory_does_not_grow_with_the_number_of_masks() -> None:
    few, many = IouSums(), MaskScores()
    few.merge(many)
    many.add_counts([10**6] * 10_000, [3 * 10**6] * 10_000)
    assert max(value.bit_length() for value in (many.iou_units, many.union, many.masks)) < 128
