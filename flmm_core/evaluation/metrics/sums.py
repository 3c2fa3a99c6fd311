"""Sums of intersections, unions and IoUs that do not depend on who added what, or when.

A float sum changes in its last digits with the order of its terms, so two processes would not
score as one does. Here everything that is added is an integer: pixels are, and each mask's IoU is
taken in units of 2^-64, rounded down. Adding and merging are then exact in any order, memory is
constant, and a mean of IoUs is less than 2^-64 below the true one, hundreds of times finer than a
float can say.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

IOU_BITS = 64
IOU_ONE = 1 << IOU_BITS
"""An IoU of 1 in the units of `IouSums.iou_units`."""

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
_TENTHS = tuple(round(10 * threshold) for threshold in THRESHOLDS)


def reached(intersection: int, union: int) -> list[bool]:
    """For each of `THRESHOLDS`, whether the IoU is at least that; 0/0 is not."""
    return [union > 0 and 10 * intersection >= tenths * union for tenths in _TENTHS]


def share(part: int, whole: int) -> float:
    """part / whole, correctly rounded; nan of nothing."""
    return part / whole if whole else float("nan")


def or_null(number: float) -> float | None:
    """The number, or None for nan, which JSON does not have."""
    return None if number != number else number


@dataclass
class IouSums:
    """Exact running sums over masks.

    Attributes:
        masks: How many were added.
        intersection: Sum of the intersections in pixels.
        union: Sum of the unions in pixels.
        iou_units: Sum of each mask's IoU, in units of 2^-64.
    """

    masks: int = 0
    intersection: int = 0
    union: int = 0
    iou_units: int = 0

    def _count(self, intersection: int, union: int, nothing: int = 0) -> None:
        """Add a mask whose IoU is `nothing`, 0 or 1, where it is 0/0."""
        if not 0 <= intersection <= union:
            raise ValueError(f"an intersection of {intersection} in a union of {union}")
        self.masks += 1
        self.intersection += intersection
        self.union += union
        self.iou_units += (intersection << IOU_BITS) // union if union else nothing * IOU_ONE

    def merge(self, other: Self) -> None:
        """Add what another process has counted."""
        self.masks += other.masks
        self.intersection += other.intersection
        self.union += other.union
        self.iou_units += other.iou_units

    @property
    def iou_sum(self) -> float:
        """Sum of each mask's IoU."""
        return self.iou_units / IOU_ONE

    @property
    def ciou(self) -> float:
        """Sum of intersections over sum of unions; 0 if there is no union, nan without masks."""
        return self.intersection / (self.union or 1) if self.masks else float("nan")

    @property
    def miou(self) -> float:
        """Mean IoU over masks; nan without masks."""
        return share(self.iou_units, self.masks * IOU_ONE)

    def _pixels(self) -> dict[str, Any]:
        return {"masks": self.masks, "intersection": self.intersection, "union": self.union}
