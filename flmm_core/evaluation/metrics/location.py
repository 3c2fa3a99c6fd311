"""Whether a box or a point is where it should be.

    box accuracy@0.5  the share of masks whose tight box has an IoU >= 0.5 with the true one's, the
        measure of referring comprehension (Mao et al., CVPR 2016; Yu et al., ECCV 2016)
    point in mask  the share of points that lie in the true mask: the pointing game (Zhang et al.,
        ECCV 2016) without its margin of 15 pixels

Boxes are (x0, y0, x1, y1) in pixels, x1 and y1 exclusive. An empty box or mask, predicted or true,
and a missing point count as a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from flmm_core.evaluation.metrics.masks import Counts, same_length, to_numpy
from flmm_core.evaluation.metrics.sums import or_null, share


@dataclass
class HitScores:
    """A running share.

    Attributes:
        masks: How many were added.
        hits: How many of them were right.
    """

    masks: int = 0
    hits: int = 0

    def add_hits(self, hits: Sequence[bool] | NDArray[np.bool_]) -> None:
        """Count masks by whether each is right."""
        self.masks += len(hits)
        self.hits += int(np.count_nonzero(hits))

    def merge(self, other: Self) -> None:
        """Add what another process has counted."""
        self.masks += other.masks
        self.hits += other.hits

    @property
    def accuracy(self) -> float:
        """Share that was right; nan without masks."""
        return share(self.hits, self.masks)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; null where there are no masks to score."""
        return {"accuracy": or_null(self.accuracy), "masks": self.masks, "hits": self.hits}


class BoxScores(HitScores):
    """Box accuracy at an IoU of 0.5."""

    def add(self, pred_xyxy: Any, truth_xyxy: Any) -> None:
        """Count (P, 4) boxes in pixels, integers or floats."""
        overlap, union = _box_areas(to_numpy(pred_xyxy), to_numpy(truth_xyxy))
        self.add_hits((overlap > 0) & (2 * overlap >= union))


class PointScores(HitScores):
    """Share of points in the true mask."""

    def add(self, points_xy: Any, truth: Any) -> None:
        """Count points.

        Args:
            points_xy: (P, 2) x and y in pixels from the image's corner, so that the pixel of
                row r and column c spans c <= x < c + 1, r <= y < r + 1; nan for no point.
                Points beside the image are misses.
            truth: (P, H, W) bool.
        """
        points = to_numpy(points_xy).astype(np.float64).reshape(-1, 2)
        masks = to_numpy(truth)
        count = same_length(truth=masks, points=points)
        # Clipped so that infinities and huge numbers become integers, all of them outside.
        cells = np.clip(np.floor(np.nan_to_num(points, nan=-1)), -1, max(masks.shape))
        x, y = cells.astype(np.int64).T
        inside = (x >= 0) & (x < masks.shape[2]) & (y >= 0) & (y < masks.shape[1])
        hits = np.zeros(count, dtype=bool)
        hits[inside] = masks[np.flatnonzero(inside), y[inside], x[inside]]
        self.add_hits(hits)


def box_iou(pred_xyxy: Any, truth_xyxy: Any) -> NDArray[np.float64]:
    """(P,) IoU of (P, 4) boxes pair by pair; 0 where one is empty."""
    overlap, union = _box_areas(to_numpy(pred_xyxy), to_numpy(truth_xyxy))
    return np.asarray(overlap / np.where(overlap > 0, union, 1), dtype=np.float64)


def peaks(logits: Any) -> Counts:
    """The pixel (x, y) of the highest logit of each mask, (P, 2) int64 from (P, H, W) floats.

    Of equal ones the first in reading order.
    """
    array = to_numpy(logits)
    count, height, width = array.shape
    y, x = np.divmod(array.reshape(count, height * width).argmax(axis=1), width)
    return np.stack([x, y], axis=-1).astype(np.int64)  # (P, 2)


def _box_areas(first: NDArray[Any], second: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Areas of the overlap and of the union, (P,) each, of (P, 4) boxes pair by pair."""
    for name, boxes in (("pred", first), ("truth", second)):
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"{name} must be (P, 4) boxes, not {boxes.shape}")
    same_length(truth=second, predictions=first)
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, 2:], second[:, 2:])
    overlap = np.clip(high - low, 0, None).prod(axis=1)
    areas = [
        np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (first, second)
    ]
    return overlap, areas[0] + areas[1] - overlap
