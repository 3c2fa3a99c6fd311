"""The field's scores, in exact integer sums.

    cIoU  the sum of all intersections over the sum of all unions ("overall IoU", oIoU)
    mIoU  the mean over masks of each one's IoU; a mask of 0/0 (nothing predicted, nothing true)
          counts as 0, as in the published evaluation
    precision@t  the share of masks with IoU >= t; 0/0 counts as a miss

All are fractions of 1. Masks count equally, whatever picture they come from. Numpy and torch
tensors are taken alike; torch is not imported here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_TENTHS = tuple(round(10 * threshold) for threshold in THRESHOLDS)

Counts = NDArray[np.int64]


def intersection_union(pred: Any, truth: Any) -> tuple[Counts, Counts]:
    """Pixels in both and pixels in either, mask by mask.

    Args:
        pred: (P, H, W) bool, numpy array or torch tensor on any device.
        truth: (P, H, W) bool, likewise.

    Returns:
        Intersection (P,) and union (P,), int64.

    Raises:
        ValueError: The shapes differ, or one is not (P, H, W) bool.
    """
    for name, masks in (("pred", pred), ("truth", truth)):
        if str(masks.dtype) not in ("bool", "torch.bool") or len(masks.shape) != 3:
            raise ValueError(
                f"{name} must be (P, H, W) bool, not {tuple(masks.shape)} {masks.dtype}"
            )
    if tuple(pred.shape) != tuple(truth.shape):
        raise ValueError(f"pred is {tuple(pred.shape)}, truth is {tuple(truth.shape)}")
    if type(pred) is not type(truth) or getattr(pred, "device", 0) != getattr(truth, "device", 0):
        pred, truth = _to_numpy(pred), _to_numpy(truth)
    return _pixels(pred & truth), _pixels(pred | truth)


def _to_numpy(masks: Any) -> NDArray[np.bool_]:
    """A bool array on the CPU, from numpy or torch."""
    return np.asarray(masks.cpu() if hasattr(masks, "cpu") else masks)


def _pixels(masks: Any) -> Counts:
    """(P, H, W) bool -> (P,) int64; one small copy from the device, not all the masks."""
    count, height, width = masks.shape
    return np.asarray(masks.reshape(count, height * width).sum(1).tolist(), dtype=np.int64)


@dataclass
class MaskScores:
    """Running sums over masks, whole and by slice.

    Attributes:
        masks: How many were added.
        intersection: Sum of the intersections in pixels.
        union: Sum of the unions in pixels.
        iou_sum: Sum of each mask's IoU.
        hits: How many masks reach each of `THRESHOLDS`.
        slices: The same by the slice's name; masks added without one are only in the whole.
    """

    masks: int = 0
    intersection: int = 0
    union: int = 0
    iou_sum: float = 0.0
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
        if slices is not None and len(slices) != len(pairs):
            raise ValueError(f"{len(pairs)} masks, but {len(slices)} slices")
        for number, (intersection, union) in enumerate(pairs):
            if not 0 <= intersection <= union:
                raise ValueError(f"an intersection of {intersection} in a union of {union}")
            self._count(intersection, union)
            if slices is not None and slices[number]:
                self.slices.setdefault(slices[number], MaskScores())._count(intersection, union)

    def _count(self, intersection: int, union: int) -> None:
        self.masks += 1
        self.intersection += intersection
        self.union += union
        if union:
            self.iou_sum += intersection / union
            for place, tenths in enumerate(_TENTHS):
                self.hits[place] += 10 * intersection >= tenths * union

    def merge(self, other: MaskScores) -> None:
        """Add what another process has counted."""
        self.masks += other.masks
        self.intersection += other.intersection
        self.union += other.union
        self.iou_sum += other.iou_sum
        self.hits = [mine + more for mine, more in zip(self.hits, other.hits, strict=True)]
        for name, scores in other.slices.items():
            self.slices.setdefault(name, MaskScores()).merge(scores)

    @property
    def ciou(self) -> float:
        """Sum of intersections over sum of unions; 0 if there is no union, nan without masks."""
        return self._share(self.intersection, self.union or 1)

    @property
    def miou(self) -> float:
        """Mean IoU over masks; nan without masks."""
        return self._share(self.iou_sum, self.masks)

    def precision_at(self, threshold: float) -> float:
        """Share of masks with IoU >= threshold, one of `THRESHOLDS`; nan without masks."""
        if threshold not in THRESHOLDS:
            raise ValueError(f"threshold {threshold} is not one of {THRESHOLDS}")
        return self._share(self.hits[THRESHOLDS.index(threshold)], self.masks)

    def _share(self, part: float, whole: int) -> float:
        return part / whole if self.masks else float("nan")

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, by the field's names; null where there are no masks to score."""
        scores: dict[str, Any] = {"ciou": self.ciou, "miou": self.miou}
        scores |= {f"precision@{t}": self.precision_at(t) for t in THRESHOLDS}
        if not self.masks:
            scores = dict.fromkeys(scores)
        scores |= {"masks": self.masks, "intersection": self.intersection, "union": self.union}
        if self.slices:
            scores["slices"] = {name: self.slices[name].to_dict() for name in sorted(self.slices)}
        return scores
