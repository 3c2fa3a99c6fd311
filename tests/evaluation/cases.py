"""Random masks, many of them empty, equal or nearly so, and their rows, counted in plain Python."""

from __future__ import annotations

from typing import Any

import numpy as np

from flmm_core.evaluation.phrase_rows import PhraseRow

CASES = 1000
Mask = np.ndarray


def random_masks(rng: np.random.Generator, count: int | None = None) -> tuple[Mask, Mask]:
    """(P, H, W) predictions and truths."""
    count = int(rng.integers(0, 6)) if count is None else count
    shape = (count, int(rng.integers(1, 5)), int(rng.integers(1, 6)))
    density = rng.choice([0.0, 0.1, 0.5, 1.0], size=(2, count, 1, 1))
    pred, truth = rng.random((2, *shape)) < density
    same = rng.random(count) < 0.2
    pred[same] = truth[same]
    return pred, truth


def pixel_by_pixel(pred: Mask, truth: Mask) -> tuple[int, int]:
    """Intersection and union of one (H, W) pair."""
    both = either = 0
    for row, other_row in zip(pred.tolist(), truth.tolist(), strict=True):
        for p, t in zip(row, other_row, strict=True):
            both += p and t
            either += p or t
    return both, either


def row_of(intersection: int, union: int, **given: Any) -> PhraseRow:
    """A row with these counts; by default it has a target and an answer."""
    return PhraseRow(
        **{
            "item": "a:0",
            "picture": "a.png",
            "phrase": "the ring",
            "size": (1, 1),
            "segmentation": {"size": (1, 1), "counts": "0"},
            "intersection": intersection,
            "union": union,
            "predicted": intersection,
            "truth": union,
            "score": 0.5,
            "seconds": 0.0,
            **given,
        }
    )


def rows_of(pred: Mask, truth: Mask, ignore: Mask | None = None, **given: Any) -> list[PhraseRow]:
    """The rows of (P, H, W) masks without the pixels to ignore."""
    rows = []
    for place in range(len(pred)):
        counted = np.ones_like(pred[place]) if ignore is None else ~ignore[place]
        masks = pred[place] & counted, truth[place] & counted
        counts = {"predicted": masks[0].sum(), "truth": masks[1].sum(), "ignored": (~counted).sum()}
        rows.append(
            row_of(
                *pixel_by_pixel(*masks),
                item=f"a:{place}",
                **{name: int(count) for name, count in counts.items()},
                **{name: values[place] for name, values in given.items()},
            )
        )
    return rows
