"""Scores of one mask a phrase: cIoU, mIoU and precision.

    cIoU  the sum of all intersections over the sum of all unions ("overall IoU", oIoU)
    mIoU  the mean over masks of each one's IoU; a mask of 0/0 (nothing predicted, nothing true)
          counts as 0, as in the published evaluation
    precision@t  the share of masks with IoU >= t; 0/0 counts as a miss

All are fractions of 1. Masks count equally, whatever image they come from. Numpy and torch
tensors are taken alike; torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flmm_core.evaluation.metrics.sums import THRESHOLDS, IouSums, or_null, reached, share

Counts = NDArray[np.int64]


def intersection_union(pred: Any, truth: Any, ignore: Any = None) -> tuple[Counts, Counts]:
    """Pixels in both and pixels in either, mask by mask.

    Args:
        pred: (P, H, W) bool, numpy array or torch tensor on any device.
        truth: (P, H, W) bool, likewise.
        ignore: (P, H, W) bool, likewise: pixels that are taken out of both; None for none.

    Returns:
        Intersection (P,) and union (P,), int64.

    Raises:
        ValueError: The shapes differ, or one is not (P, H, W) bool.
    """
    given = {"pred": pred, "truth": truth} | ({} if ignore is None else {"ignore": ignore})
    for name, masks in given.items():
        if str(masks.dtype) not in ("bool", "torch.bool") or len(masks.shape) != 3:
            raise ValueError(
                f"{name} must be (P, H, W) bool, not {tuple(masks.shape)} {masks.dtype}"
            )
        if tuple(masks.shape) != tuple(pred.shape):
            raise ValueError(f"pred is {tuple(pred.shape)}, {name} is {tuple(masks.shape)}")
    if len({(type(masks), getattr(masks, "device", "cpu")) for masks in given.values()}) > 1:
        given = {name: to_numpy(masks) for name, masks in given.items()}
    both, either = given["pred"] & given["truth"], given["pred"] | given["truth"]
    if ignore is not None:
        both, either = both & ~given["ignore"], either & ~given["ignore"]
    return pixels(both), pixels(either)


def to_numpy(masks: Any) -> NDArray[Any]:
    """An array on the CPU, from numpy or torch."""
    return np.asarray(masks.cpu() if hasattr(masks, "cpu") else masks)


def pixels(masks: Any) -> Counts:
    """(P, H, W) bool -> (P,) int64; one small copy from the device, not all the masks."""
    count, height, width = masks.shape
    return np.asarray(masks.reshape(count, height * width).sum(1).tolist(), dtype=np.int64)


def same_length(**columns: Sized) -> int:
    """The length that all columns have; ValueError names the first that differs."""
    lengths = {name: len(column) for name, column in columns.items()}
    first = next(iter(lengths.values()))
    for name, length in lengths.items():
        if length != first:
            raise ValueError(f"{first} masks, but {length} {name.replace('_', ' ')}")
    return first


@dataclass
class MaskScores(IouSums):
    """Running sums over masks, whole and by slice.

    Attributes:
        hits: How many masks reach each of `THRESHOLDS`.
        slices: The same by the slice's name; masks added without one are only in the whole.
    """

    hits: list[int] = field(default_factory=lambda: [0] * len(THRESHOLDS))
    slices: dict[str, MaskScores] = field(default_factory=dict)

    def add(self, pred: Any, truth: Any, slices: Sequence[str] | None = None) -> None:
        """Count masks.

        Args:
            pred: (P, H, W) bool.
            truth: (P, H, W) bool.
            slices: The slice of each mask, "" for none.
        """
        intersection, union = intersection_union(pred, truth)
        self.add_counts(intersection, union, slices)

    def add_counts(
        self,
        intersections: Iterable[int],
        unions: Iterable[int],
        slices: Sequence[str] | None = None,
    ) -> None:
        """Count masks by their pixel counts, as `intersection_union` gives them."""
        pairs = [(int(i), int(u)) for i, u in zip(intersections, unions, strict=True)]
        if slices is not None:
            same_length(masks=pairs, slices=slices)
        for number, (intersection, union) in enumerate(pairs):
            self._count(intersection, union)
            if slices is not None and slices[number]:
                self.slices.setdefault(slices[number], MaskScores())._count(intersection, union)

    def _count(self, intersection: int, union: int, nothing: int = 0) -> None:
        super()._count(intersection, union, nothing)
        for place, hit in enumerate(reached(intersection, union)):
            self.hits[place] += hit

    def merge(self, other: Self) -> None:
        """Add what another process has counted."""
        super().merge(other)
        self.hits = [mine + more for mine, more in zip(self.hits, other.hits, strict=True)]
        for name, scores in other.slices.items():
            self.slices.setdefault(name, MaskScores()).merge(scores)

    def precision_at(self, threshold: float) -> float:
        """Share of masks with IoU >= threshold, one of `THRESHOLDS`; nan without masks."""
        if threshold not in THRESHOLDS:
            raise ValueError(f"threshold {threshold} is not one of {THRESHOLDS}")
        return share(self.hits[THRESHOLDS.index(threshold)], self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, by the field's names; null where there are no masks to score."""
        scores: dict[str, Any] = {"ciou": or_null(self.ciou), "miou": or_null(self.miou)}
        scores |= {f"precision@{t}": or_null(self.precision_at(t)) for t in THRESHOLDS}
        scores |= self._pixels()
        if self.slices:
            scores["slices"] = {name: self.slices[name].to_dict() for name in sorted(self.slices)}
        return scores
