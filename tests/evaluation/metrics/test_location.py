from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flmm_core.evaluation.metrics import BoxScores, PointScores, box_iou, peaks
from flmm_core.pipeline.boxes import tight_boxes
from tests.evaluation.metrics.cases import CASES, fraction, random_masks, ratio


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """First and last occupied row and column, pixel by pixel."""
    found = [(x, y) for y, row in enumerate(mask.tolist()) for x, hit in enumerate(row) if hit]
    if not found:
        return None
    columns, rows = zip(*found, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def cells(box: tuple[int, int, int, int] | None) -> set[tuple[int, int]]:
    """The pixels in a box."""
    if box is None:
        return set()
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def test_boxes_and_their_accuracy_are_those_of_the_definition_in_a_thousand_cases() -> None:
    rng = np.random.default_rng(6)
    for _ in range(CASES):
        pred, truth = random_masks(rng)
        expected = [(box_of(p), box_of(t)) for p, t in zip(pred, truth, strict=True)]
        found = [tight_boxes(torch.from_numpy(masks)) for masks in (pred, truth)]
        assert found[0].tolist() == [list(p or (0, 0, 0, 0)) for p, _ in expected]
        ious = []
        for first, second in expected:
            one, other = cells(first), cells(second)
            ious.append(fraction(len(one & other), len(one | other)))
        hits = sum(iou >= fraction(1, 2) for iou in ious)
        for boxes in (found, [found[0].numpy(), found[1]]):
            scores = BoxScores()
            scores.add(*boxes)
            assert scores.accuracy == pytest.approx(ratio(hits, len(pred)), nan_ok=True)
            assert box_iou(*boxes) == pytest.approx([float(iou) for iou in ious], abs=1e-9)


@pytest.mark.parametrize(
    ("pred", "truth", "hit"),
    [
        ((0, 0, 2, 1), (0, 0, 4, 1), 1),  # exactly one half
        ((0, 0, 1.9, 1), (0, 0, 4, 1), 0),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),  # they touch, with no pixel in common
        ((0, 0, 0, 0), (0, 0, 0, 0), 0),  # neither exists
        ((0, 0, 0, 0), (0, 0, 1, 1), 0),
        ((3, 3, 1, 1), (1, 1, 3, 3), 0),  # inside out, so empty
    ],
)
def test_boxes_at_the_edge(pred: tuple[float, ...], truth: tuple[float, ...], hit: int) -> None:
    scores = BoxScores()
    scores.add(np.array([pred]), np.array([truth]))
    assert (scores.masks, scores.hits) == (1, hit)


def test_points_are_looked_up_as_the_definition_says_in_a_thousand_cases() -> None:
    rng = np.random.default_rng(8)
    for _ in range(CASES):
        masks, _ = random_masks(rng)
        count, height, width = masks.shape
        points = rng.uniform(-1.5, max(height, width) + 1.5, (count, 2))
        points[rng.random(count) < 0.2] = np.nan
        points[rng.random(count) < 0.1] = np.inf
        whole = rng.random(count) < 0.3
        points[whole] = np.floor(points[whole])  # on a pixel's edge
        hits = 0
        for (x, y), mask in zip(points.tolist(), masks.tolist(), strict=True):
            hits += any(
                hit and column <= x < column + 1 and row <= y < row + 1
                for row, line in enumerate(mask)
                for column, hit in enumerate(line)
            )
        scores = PointScores()
        scores.add(points, masks)
        assert scores.accuracy == pytest.approx(ratio(hits, count), nan_ok=True)


def test_the_peak_is_the_first_highest_pixel() -> None:
    rng = np.random.default_rng(9)
    logits = rng.integers(0, 3, (200, 3, 4)).astype(np.float32)
    for (x, y), one in zip(peaks(torch.from_numpy(logits)).tolist(), logits, strict=True):
        assert one[y, x] == one.max()
        assert not (one.ravel()[: y * 4 + x] == one.max()).any()
    scores = PointScores()
    scores.add(peaks(logits), logits == logits.max(axis=(1, 2), keepdims=True))
    assert scores.accuracy == 1


def test_in_json() -> None:
    scores = BoxScores()
    assert math.isnan(scores.accuracy)
    assert scores.to_dict() == {"accuracy": None, "masks": 0, "hits": 0}
    scores.add(np.array([[0, 0, 1, 1]] * 2), np.array([[0, 0, 1, 1]] * 2))
    assert scores.to_dict() == {"accuracy": 1.0, "masks": 2, "hits": 2}


def test_what_are_no_boxes_masks_or_points() -> None:
    with pytest.raises(ValueError, match=r"pred must be \(P, 4\) boxes, not \(2, 3\)"):
        BoxScores().add(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="1 masks, but 2 predictions"):
        BoxScores().add(np.zeros((2, 4)), np.zeros((1, 4)))
    with pytest.raises(ValueError, match="1 masks, but 2 points"):
        PointScores().add(np.zeros((2, 2)), np.ones((1, 2, 2), bool))
