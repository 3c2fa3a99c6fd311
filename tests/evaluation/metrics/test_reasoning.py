from __future__ import annotations

import numpy as np
import pytest
import torch

from flmm_core.evaluation.metrics import MaskScores, ReasonScores
from tests.evaluation.metrics.cases import CASES, fraction, mean, random_masks


def test_scores_are_those_of_the_definitions_in_a_thousand_cases() -> None:
    rng = np.random.default_rng(2)
    for _ in range(CASES):
        pred, truth = random_masks(rng)
        ignore = rng.random(pred.shape) < rng.choice([0.0, 0.3, 1.0], size=(len(pred), 1, 1))
        ious, intersections, unions = [], 0, 0
        for one, other, left_out in zip(
            pred.tolist(), truth.tolist(), ignore.tolist(), strict=True
        ):
            both = either = 0
            for rows in zip(one, other, left_out, strict=True):
                for p, t, i in zip(*rows, strict=True):
                    both += p and t and not i
                    either += (p or t) and not i
            ious.append(fraction(both, either, nothing=1))
            intersections += both
            unions += either
        scores = ReasonScores()
        scores.add(pred, truth, ignore)
        assert scores.giou == pytest.approx(mean(ious), abs=1e-12, nan_ok=True)
        if ious:
            assert scores.ciou == pytest.approx(intersections / (unions or 1), abs=1e-12)


def test_ignored_pixels_count_neither_for_nor_against() -> None:
    pred = np.array([[[True, True, True, False]]])
    truth = np.array([[[True, False, False, True]]])
    ignore = np.array([[[False, True, False, True]]])
    scores = ReasonScores()
    scores.add(pred, torch.from_numpy(truth), ignore)
    assert (scores.intersection, scores.union) == (1, 2)


def test_silence_where_nothing_is_counts_one_unlike_in_referring() -> None:
    nothing = np.zeros((1, 1, 4), dtype=bool)
    reasoning, referring = ReasonScores(), MaskScores()
    reasoning.add(nothing, nothing)
    reasoning.add(~nothing, ~nothing, ~nothing)
    referring.add(nothing, nothing)
    assert (reasoning.giou, reasoning.ciou) == (1, 0)
    assert (referring.miou, referring.ciou) == (0, 0)


def test_in_json() -> None:
    scores = ReasonScores()
    assert scores.to_dict()["giou"] is None
    scores.add_counts([1, 3], [2, 4])
    assert scores.to_dict() == {
        "giou": 0.625,
        "ciou": 4 / 6,
        "masks": 2,
        "intersection": 4,
        "union": 6,
    }


def test_a_region_of_another_size() -> None:
    mask = np.ones((1, 2, 3), dtype=bool)
    with pytest.raises(ValueError, match=r"pred is \(1, 2, 3\), ignore is \(1, 3, 2\)"):
        ReasonScores().add(mask, mask, mask.reshape(1, 3, 2))
