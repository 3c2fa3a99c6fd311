from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
import pytest

from flmm_core.evaluation.metrics import THRESHOLDS, GeneralisedScores
from tests.evaluation.metrics.cases import (
    CASES,
    fraction,
    mean,
    pixel_by_pixel,
    random_masks,
    ratio,
)


def by_definition(
    pred: np.ndarray, truth: np.ndarray, no_target: Sequence[bool], says_none: Sequence[bool]
) -> dict[str, float]:
    """GRES's metrics, sample by sample."""
    kinds = {"TP": 0, "FN": 0, "TN": 0, "FP": 0}
    ious, intersections, unions, hits = [], 0, 0, dict.fromkeys(THRESHOLDS, 0)
    for one, other, none_true, none_said in zip(pred, truth, no_target, says_none, strict=True):
        both, either = pixel_by_pixel(one, other)
        if none_true and none_said:
            kinds["TP"] += 1
            ious.append(fraction(1, 1))
        elif none_true:
            kinds["FN"] += 1
            ious.append(fraction(0, 1))
            unions += either
        else:
            kinds["FP" if none_said else "TN"] += 1
            both = 0 if none_said else both
            ious.append(fraction(both, either))
            intersections += both
            unions += either
            for tenths, threshold in zip(range(5, 10), THRESHOLDS, strict=True):
                hits[threshold] += ious[-1] >= fraction(tenths, 10)
    targets = kinds["TN"] + kinds["FP"]
    return {
        "giou": mean(ious),
        "ciou": ratio(intersections, unions or 1) if ious else float("nan"),
        "n_acc": ratio(kinds["TP"], kinds["TP"] + kinds["FN"]),
        "t_acc": ratio(kinds["TN"], kinds["TN"] + kinds["FP"]),
        **{f"precision@{t}": ratio(hits[t], targets) for t in THRESHOLDS},
    }


@pytest.mark.parametrize("apart", [False, True])
def test_scores_are_those_of_the_definitions_in_a_thousand_cases(apart: bool) -> None:
    """With the answer "none" read off the mask, or given apart from it."""
    rng = np.random.default_rng(1)
    for _ in range(CASES):
        pred, truth = random_masks(rng)
        none_true = [not mask.any() for mask in truth]
        said = rng.random(len(pred)) < 0.5 if apart else [not mask.any() for mask in pred]
        scores = GeneralisedScores()
        scores.add(pred, truth, **({"says_none": said} if apart else {}))
        expected = by_definition(pred, truth, none_true, said)
        found = {
            "giou": scores.giou,
            "ciou": scores.ciou,
            "n_acc": scores.n_acc,
            "t_acc": scores.t_acc,
            **{f"precision@{t}": scores.precision_at(t) for t in THRESHOLDS},
        }
        assert found == pytest.approx(expected, abs=1e-12, nan_ok=True)


def test_one_of_each_kind() -> None:
    """A recognised "none", a mask for nothing, an answer of IoU 1/2 and a wrong "none"."""
    pred, truth = np.zeros((2, 4, 1, 4), dtype=bool)
    pred[1, 0, :3] = True
    truth[2] = truth[3] = True
    pred[2, 0, :2] = True
    scores = GeneralisedScores()
    scores.add(pred, truth)
    assert json.loads(json.dumps(scores.to_dict())) == {
        "giou": 1.5 / 4,
        "ciou": 2 / (3 + 4 + 4),
        "n_acc": 0.5,
        "t_acc": 0.5,
        "precision@0.5": 0.5,
        **{f"precision@{t}": 0.0 for t in (0.6, 0.7, 0.8, 0.9)},
        "masks": 4,
        "intersection": 2,
        "union": 11,
        "no_target": 2,
        "targets": 2,
    }


def test_a_none_that_is_said_beside_a_mask() -> None:
    """It counts as none; where there was a target, the mask's pixels stay in the union."""
    mask = np.array([[[True, True, False, False]]])
    target = np.array([[[True, True, True, False]]])
    right, wrong = GeneralisedScores(), GeneralisedScores()
    right.add(mask, np.zeros_like(mask), says_none=[True])
    assert (right.giou, right.n_acc, right.union) == (1, 1, 0)
    wrong.add(mask, target, says_none=[True])
    assert (wrong.giou, wrong.t_acc, wrong.intersection, wrong.union) == (0, 0, 0, 3)


def test_nothing_to_score_is_null_in_json() -> None:
    scores = GeneralisedScores().to_dict()
    assert {name for name, score in scores.items() if score is None} == {
        *("giou", "ciou", "n_acc", "t_acc"),
        *(f"precision@{t}" for t in THRESHOLDS),
    }
    only_none = GeneralisedScores()
    only_none.add_counts([0], [0], no_target=[True], says_none=[True])
    assert only_none.to_dict()["t_acc"] is None
    assert (only_none.giou, only_none.n_acc, only_none.ciou) == (1, 1, 0)


def test_what_cannot_be() -> None:
    full = np.ones((1, 1, 2), dtype=bool)
    with pytest.raises(ValueError, match="a sample without target has pixels in its truth"):
        GeneralisedScores().add(full, full, no_target=[True])
    with pytest.raises(ValueError, match="an intersection of 1 without a target"):
        GeneralisedScores().add_counts([1], [2], no_target=[True], says_none=[False])
    with pytest.raises(ValueError, match="1 masks, but 2 says none"):
        GeneralisedScores().add_counts([1], [2], no_target=[False], says_none=[True, False])
    with pytest.raises(ValueError, match=r"threshold 0.75 is not one of"):
        GeneralisedScores().precision_at(0.75)
