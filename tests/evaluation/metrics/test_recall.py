from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import png_recall
from flmm_core.evaluation.metrics import SUBSETS, RecallScores
from tests.evaluation.metrics.cases import CASES, pixel_by_pixel, random_masks

THRESHOLDS = np.arange(0, 1, 0.00001)


def by_definition(ious: list[float]) -> float:
    """The left Riemann sum of recall over all thresholds, each recall counted afresh."""
    if not ious:
        return float("nan")
    recall = (np.array(ious)[:, None] >= THRESHOLDS[:-1]).mean(axis=0)
    return float((np.diff(THRESHOLDS) * recall).sum())


def check_definition(counts: list[tuple[int, int, bool, bool]]) -> None:
    scores = RecallScores()
    scores.add_counts(
        *(list(column) for column in zip(*counts, strict=True)) if counts else [[]] * 4
    )
    ious = [(i / u if u else 0.0, thing, plural) for i, u, thing, plural in counts]
    expected = {
        "all": [iou for iou, _, _ in ious],
        "thing": [iou for iou, thing, plural in ious if thing or plural],
        "stuff": [iou for iou, thing, plural in ious if not (thing or plural)],
        "singular": [iou for iou, _, plural in ious if not plural],
        "plural": [iou for iou, _, plural in ious if plural],
    }
    for name, members in expected.items():
        wanted = by_definition(members)
        assert scores.average_recall(name) == pytest.approx(wanted, abs=1e-9, nan_ok=True)
        assert scores.masks[name] == len(members)


def test_scores_are_those_of_the_definition_in_a_thousand_cases() -> None:
    rng = np.random.default_rng(3)
    for _ in range(CASES):
        pred, truth = random_masks(rng, int(rng.integers(0, 4)))
        kinds = rng.random((2, len(pred))) < 0.5
        counts = [pixel_by_pixel(*pair) for pair in zip(pred, truth, strict=True)]
        check_definition([(*c, *k) for c, k in zip(counts, kinds.T.tolist(), strict=True)])


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 10**5), st.integers(0, 10**5), st.booleans(), st.booleans()),
        max_size=4,
    ),
    st.booleans(),
)
def test_ties_with_a_threshold_fall_as_published(
    counts: list[tuple[int, int, bool, bool]], on_threshold: bool
) -> None:
    """With a union of 100,000 every IoU lies on a threshold, or beside it by its last bit."""
    check_definition(
        [(min(i, u), 10**5 if on_threshold else max(i, u), t, p) for i, u, t, p in counts]
    )


def test_masks_are_counted_like_their_pixels() -> None:
    pred, truth = random_masks(np.random.default_rng(4), 40)
    kinds = np.random.default_rng(5).random((2, 40)) < 0.5
    counts = [pixel_by_pixel(*pair) for pair in zip(pred, truth, strict=True)]
    scores, expected = RecallScores(), RecallScores()
    scores.add(pred, truth, *kinds)
    expected.add_counts(*map(list, zip(*counts, strict=True)), *kinds)
    assert scores == expected


def test_the_ends_of_the_scale() -> None:
    scores = RecallScores()
    scores.add_counts([7, 0, 0], [7, 7, 0], [True, False, False], [False, False, True])
    assert scores.average_recall("singular") == pytest.approx((0.99999 + 0.00001) / 2)
    assert scores.average_recall("stuff") == scores.average_recall("plural") == 1e-5
    assert scores.average_recall("thing") == pytest.approx(0.5)


def test_an_empty_subset_is_nan_and_null() -> None:
    scores = RecallScores()
    scores.add_counts([1], [2], [True], [False])
    assert math.isnan(scores.average_recall("plural"))
    stored = json.loads(json.dumps(scores.to_dict()))
    assert [name for name in SUBSETS if stored["average_recall"][name] is None] == [
        "stuff",
        "plural",
    ]
    assert stored["masks"] == {"all": 1, "thing": 1, "stuff": 0, "singular": 1, "plural": 0}


def test_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="2 masks, but 1 plurals"):
        RecallScores().add_counts([1, 1], [2, 2], [True, True], [False])
    with pytest.raises(ValueError, match="an intersection of 3 in a union of 2"):
        RecallScores().add_counts([1, 3], [2, 2], [True, True], [False, True])
    with pytest.raises(ValueError, match="subset 'things' is not one of"):
        RecallScores().average_recall("things")


def test_the_bench_prints_its_seconds(capsys: pytest.CaptureFixture[str]) -> None:
    png_recall.main(["--masks", "50", "--repeats", "1", "--published"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["masks"] == 50
    assert printed["seconds"] >= 0
    assert printed["average_recall"] == pytest.approx(printed["published_average_recall"], abs=1e-9)
