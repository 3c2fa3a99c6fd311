from __future__ import annotations

import json
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flmm_core.evaluation.metrics import THRESHOLDS, MaskScores, intersection_union

Pair = tuple[np.ndarray, np.ndarray]


@st.composite
def pairs(draw: st.DrawFn) -> Pair:
    """(P, H, W) predictions and truths, many of them empty, equal or nearly so."""
    height, width = draw(st.sampled_from([(1, 1), (1, 10), (2, 3), (4, 5)]))
    pixels = st.integers(0, 2 ** (height * width) - 1)
    pair = st.tuples(st.just(0) | pixels, st.just(0) | pixels, st.sampled_from("=~?"))
    masks: tuple[list[int], list[int]] = ([], [])
    for first, second, kind in draw(st.lists(pair, max_size=4)):
        masks[0].append(first)
        masks[1].append({"=": first, "~": first ^ (second & second >> 1), "?": second}[kind])
    bits = np.array(masks, dtype=np.int64)[..., None] >> np.arange(height * width) & 1
    pred, truth = bits.astype(bool).reshape(2, -1, height, width)
    return pred, truth


def counted(pred: np.ndarray, truth: np.ndarray) -> list[tuple[int, int]]:
    """Intersection and union pixel by pixel, in plain Python."""
    found = []
    for one, other in zip(pred.tolist(), truth.tolist(), strict=True):
        both = either = 0
        for row, other_row in zip(one, other, strict=True):
            for p, t in zip(row, other_row, strict=True):
                both += p and t
                either += p or t
        found.append((both, either))
    return found


@given(pairs())
def test_pixels_are_counted_exactly_for_numpy_and_torch(pair: Pair) -> None:
    expected = counted(*pair)
    tensors = [torch.from_numpy(masks.copy()) for masks in pair]
    for pred, truth in (pair, tensors, (pair[0], tensors[1]), (tensors[0], pair[1])):
        intersection, union = intersection_union(pred, truth)
        assert intersection.dtype == union.dtype == np.int64
        assert list(zip(intersection, union, strict=True)) == expected


def check_definitions(batches: list[Pair]) -> None:
    scores = MaskScores()
    for pred, truth in batches:
        scores.add(pred, truth)
    each = [counts for pair in batches for counts in counted(*pair)]
    ious = [Fraction(i, u) if u else Fraction(0) for i, u in each]
    assert scores.masks == len(each)
    if not each:
        assert math.isnan(scores.ciou)
        assert math.isnan(scores.miou)
        assert math.isnan(scores.precision_at(0.5))
        return
    total = sum(u for _, u in each)
    assert scores.ciou == pytest.approx(sum(i for i, _ in each) / total if total else 0, abs=1e-12)
    assert scores.miou == pytest.approx(float(sum(ious) / len(ious)), abs=1e-12)
    for tenths, threshold in zip(range(5, 10), THRESHOLDS, strict=True):
        hits = sum(iou >= Fraction(tenths, 10) for iou in ious)
        assert scores.precision_at(threshold) == hits / len(ious)


@given(st.lists(pairs(), max_size=5))
def test_scores_are_those_of_the_definitions(batches: list[Pair]) -> None:
    check_definitions(batches)


def test_scores_are_those_of_the_definitions_in_a_thousand_more_cases() -> None:
    rng = np.random.default_rng(0)
    for _ in range(1000):
        shape = (int(rng.integers(0, 5)), int(rng.integers(1, 4)), int(rng.integers(1, 5)))
        densities = rng.choice([0.0, 0.1, 0.5, 1.0], size=(2, shape[0], 1, 1))
        pred, truth = rng.random((2, *shape)) < densities
        check_definitions([(pred, truth)])


@given(pairs(), pairs(), st.data())
def test_parts_merge_to_the_whole_and_slices_split_it(
    first: Pair, second: Pair, data: st.DataObject
) -> None:
    whole, parts = MaskScores(), [MaskScores(), MaskScores()]
    by_slice: dict[str, MaskScores] = {}
    for part, (pred, truth) in zip(parts, (first, second), strict=True):
        names = [data.draw(st.sampled_from(["", "plain", "small"])) for _ in pred]
        part.add(pred, truth, names)
        whole.add(pred, truth, names)
        for index, name in enumerate(names):
            if name:
                alone = by_slice.setdefault(name, MaskScores())
                alone.add(pred[index : index + 1], truth[index : index + 1])
    parts[0].merge(parts[1])
    for merged, expected in (
        (parts[0], whole),
        *((whole.slices[n], by_slice[n]) for n in by_slice),
    ):
        assert merged == expected
    assert set(whole.slices) == set(parts[0].slices) == set(by_slice)


def test_the_field_in_json() -> None:
    pred, truth = np.zeros((4, 1, 10), dtype=bool), np.zeros((4, 1, 10), dtype=bool)
    pred[0, 0, :9] = truth[0] = True  # 9/10: exactly on the threshold
    pred[1, 0, :5] = truth[1, 0, 5:] = True  # 0/10
    truth[2, 0, 0] = True  # 0/1, and the fourth is 0/0
    scores = MaskScores()
    scores.add(pred, truth, ["plain", "plain", "small", ""])
    plain = {"ciou": 0.45, "miou": 0.45, **{f"precision@{t}": 0.5 for t in THRESHOLDS}}
    none = {"ciou": 0.0, "miou": 0.0, **{f"precision@{t}": 0.0 for t in THRESHOLDS}}
    assert json.loads(json.dumps(scores.to_dict())) == {
        "ciou": 9 / 21,
        "miou": 0.225,
        "precision@0.5": 0.25,
        "precision@0.6": 0.25,
        "precision@0.7": 0.25,
        "precision@0.8": 0.25,
        "precision@0.9": 0.25,
        "masks": 4,
        "intersection": 9,
        "union": 21,
        "slices": {
            "plain": {**plain, "masks": 2, "intersection": 9, "union": 20},
            "small": {**none, "masks": 1, "intersection": 0, "union": 1},
        },
    }


def test_nothing_to_score_is_null_in_json() -> None:
    scores = MaskScores().to_dict()
    assert scores == {
        **dict.fromkeys(("ciou", "miou", *(f"precision@{t}" for t in THRESHOLDS))),
        "masks": 0,
        "intersection": 0,
        "union": 0,
    }
    assert "NaN" not in json.dumps(scores)


def test_ignored_pixels_are_taken_out_of_both() -> None:
    pred = np.array([[[True, True, True, False]]])
    truth = np.array([[[True, False, False, True]]])
    ignore = np.array([[[False, True, False, True]]])
    for left_out in (ignore, torch.from_numpy(ignore)):
        assert intersection_union(pred, truth, left_out) == ([1], [2])


def test_sums_stay_exact_where_float32_drifts() -> None:
    scores = MaskScores()
    big = 2**40 + 1
    for _ in range(3):
        scores.add_counts([big], [big + 2])
    assert (scores.intersection, scores.union) == (3 * big, 3 * big + 6)


@pytest.mark.parametrize(
    ("pred", "truth", "fault"),
    [
        (np.ones((1, 2, 3), bool), np.ones((2, 2, 3), bool), r"pred is \(1, 2, 3\), truth is"),
        (np.ones((2, 3), bool), np.ones((2, 3), bool), r"pred must be \(P, H, W\) bool, not \(2"),
        (np.ones((1, 2, 3)), np.ones((1, 2, 3), bool), r"pred must be .* float64"),
        (np.ones((1, 2, 3), bool), torch.ones(1, 2, 3), r"truth must be .* torch\.float32"),
    ],
)
def test_what_are_no_masks(pred: object, truth: object, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        intersection_union(pred, truth)


def test_counts_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="an intersection of 3 in a union of 2"):
        MaskScores().add_counts([3], [2])
    with pytest.raises(ValueError, match="2 masks, but 1 slices"):
        MaskScores().add_counts([1, 1], [2, 2], ["plain"])
    with pytest.raises(ValueError, match="shorter"):
        MaskScores().add_counts([1, 1], [2])
    with pytest.raises(ValueError, match=r"threshold 0.75 is not one of"):
        MaskScores().precision_at(0.75)
