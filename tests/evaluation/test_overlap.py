"""Pixels, boxes and peaks of masks, counted one by one."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from flmm_core.data import rle
from flmm_core.data.sample import Phrase, Sample
from flmm_core.evaluation.rows_from_masks import intersection_union, pixels, rows_from_masks
from flmm_core.loader.dataset import ExampleBatch
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Grounding
from flmm_core.segment import Segment
from tests.evaluation.cases import CASES, pixel_by_pixel, random_masks

Box = tuple[int, int, int, int]


def box_of(mask: np.ndarray) -> Box | None:
    """First and last occupied row and column, pixel by pixel."""
    found = [(x, y) for y, row in enumerate(mask.tolist()) for x, hit in enumerate(row) if hit]
    if not found:
        return None
    columns, rows = zip(*found, strict=True)
    return min(columns), min(rows), max(columns) + 1, max(rows) + 1


def inside(box: Box | None) -> set[tuple[int, int]]:
    """The pixels in a box."""
    if box is None:
        return set()
    return {(x, y) for x in range(box[0], box[2]) for y in range(box[1], box[3])}


def batch_of(logits: np.ndarray, truth: np.ndarray) -> tuple[list[Grounding], ExampleBatch]:
    """One sample with these (P, H, W) logits and masks."""
    phrases = tuple(Phrase("ring", rle.encode(mask)) for mask in truth)
    segments = tuple(Segment("ring", place) for place in range(len(truth)))
    sample = Sample("x", Path("x.png"), truth.shape[1:], segments, phrases)
    values = torch.from_numpy(logits).float()
    maps = AttentionMaps(torch.zeros(len(truth), 1, 2, 2), WHOLE_IMAGE)
    batch: Any = SimpleNamespace(truths=(torch.from_numpy(truth),), samples=(sample,))
    return [Grounding(values, MaskLogits(values), maps)], cast(ExampleBatch, batch)


def test_pixels_are_counted_exactly() -> None:
    rng = np.random.default_rng(5)
    for _ in range(CASES):
        pred, truth = random_masks(rng)
        expected = [pixel_by_pixel(*pair) for pair in zip(pred, truth, strict=True)]
        found = intersection_union(torch.from_numpy(pred), torch.from_numpy(truth))
        assert list(zip(*found, strict=True)) == expected
        assert pixels(torch.from_numpy(pred)) == pred.sum((1, 2)).tolist()


def test_boxes_and_points_of_rows_are_those_of_the_definition() -> None:
    """IoU of the tight boxes; the first highest pixel in reading order."""
    rng = np.random.default_rng(6)
    for _ in range(CASES // 5):
        logits, truth = random_masks(rng)
        logits = rng.integers(-2, 3, logits.shape) * np.where(logits, 1.0, -1.0)
        pred = logits > 0
        (rows,) = rows_from_masks(*batch_of(logits, truth))
        assert tight_boxes(torch.from_numpy(pred)).tolist() == [
            list(box_of(mask) or (0, 0, 0, 0)) for mask in pred
        ]
        for row, one, mask, values in zip(rows, pred, truth, logits, strict=True):
            first, second = inside(box_of(one)), inside(box_of(mask))
            if not second:
                assert row.box_iou is row.point_in_mask is None
                continue
            assert row.box_iou == float(Fraction(len(first & second), len(first | second)))
            y, x = next(zip(*np.where(values == values.max()), strict=True))
            assert row.point_in_mask == mask[y, x]


def test_masks_of_other_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pred is \(1, 2, 3\), truth is \(2, 2, 3\)"):
        intersection_union(torch.ones(1, 2, 3).bool(), torch.ones(2, 2, 3).bool())
