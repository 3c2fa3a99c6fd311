"""Scores with regions that do not count (ReasonSeg).

The definitions are those of LISA (Lai et al., CVPR 2024, arXiv 2308.00692) and of its evaluation
(`validate` in `train_ds.py`, ignored pixels labelled 255):

    gIoU  the mean over images, one mask each, of the mask's IoU
    cIoU  the sum of all intersections over the sum of all unions

Ignored pixels are taken out of prediction and truth first. A mask with nothing left in either
(0/0) then has an IoU of 1: LISA adds 1 where the union is zero, so staying silent is right where
nothing is there. This differs from `MaskScores`, where 0/0 counts as 0. LISA also adds 1e-5 pixels
to each union and 1e-10 to their sum, and sums in float32; these are left out here, which changes
a mask's IoU by less than 1e-5.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from flmm_core.evaluation.metrics.masks import intersection_union
from flmm_core.evaluation.metrics.sums import IouSums, or_null


@dataclass
class ReasonScores(IouSums):
    """Running sums over masks outside the ignored regions."""

    def add(self, pred: Any, truth: Any, ignore: Any = None) -> None:
        """Count masks.

        Args:
            pred: (P, H, W) bool.
            truth: (P, H, W) bool.
            ignore: (P, H, W) bool, pixels that do not count; None for none.
        """
        self.add_counts(*intersection_union(pred, truth, ignore))

    def add_counts(self, intersections: Iterable[int], unions: Iterable[int]) -> None:
        """Count masks by their pixels outside the ignored regions."""
        for intersection, union in zip(intersections, unions, strict=True):
            self._count(int(intersection), int(union), nothing=1)

    @property
    def giou(self) -> float:
        """Mean IoU over masks, 0/0 counting 1; nan without masks."""
        return self.miou

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, by the field's names; null where there are no masks to score."""
        return {"giou": or_null(self.giou), "ciou": or_null(self.ciou), **self._pixels()}
