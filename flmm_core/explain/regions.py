"""A point, a box or a mask -> how much of each cell of a map counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from flmm_core.errors import UsageError
from flmm_core.explain.maps import REACH, Floats
from flmm_core.pipeline.resample import resize_truth


def cell_weights(region: Any, image_hw: tuple[int, int], grid: tuple[int, int]) -> Floats:
    """(h, w) weights in [0, 1] of the cells for a region of the image.

    A cell counts by the share of it that the region covers, and its neighbors by a Gaussian of
    `REACH` cells: the peak of a map for a small thing can lie in the cell beside it.

    Args:
        region: (x, y) or (x0, y0, x1, y1) in pixels, x1 and y1 exclusive, or a mask (H, W) of the
            size of the image, true or above 0 inside.
        image_hw: (H, W).
        grid: (h, w).

    Raises:
        UsageError: It is none of these, lies outside the image, is empty, or has another size.
    """
    H, W = image_hw
    values = np.asarray(region)
    if values.ndim == 2:
        return _spread(_mask_share(values, image_hw, grid))
    if values.shape not in ((2,), (4,)) or values.dtype.kind not in "iuf":
        raise UsageError(
            "The region is neither a point, a box nor a mask.",
            found=f"Found {type(region).__name__} of shape {values.shape}.",
            repair="Give (x, y) or (x0, y0, x1, y1) in pixels, or a mask of the image's size.",
        )
    numbers = [float(value) for value in values]
    said = ",".join(f"{number:g}" for number in numbers)
    size = f"The image is {W} x {H} pixels."
    if len(numbers) == 2:
        x, y = numbers
        if not (0 <= x < W and 0 <= y < H):
            raise UsageError(
                f"The point {said} is outside the image.",
                found=size,
                repair=f"Give x from 0 to {W - 1} and y from 0 to {H - 1}.",
            )
        numbers = [x, y, x + 1, y + 1]
    x0, y0, x1, y1 = numbers
    if not (x0 < x1 and y0 < y1):
        raise UsageError(
            f"The box {said} is empty.",
            found="Its second corner is not right of and below its first.",
            repair="Give x0,y0,x1,y1 with x0 < x1 and y0 < y1.",
        )
    if not (x0 < W and y0 < H and x1 > 0 and y1 > 0):
        raise UsageError(
            f"The box {said} is outside the image.",
            found=size,
            repair="Give its corners in pixels of the image.",
        )
    return _spread(np.outer(_overlap(y0, y1, H, grid[0]), _overlap(x0, x1, W, grid[1])))


def _mask_share(mask: NDArray[Any], image_hw: tuple[int, int], grid: tuple[int, int]) -> Any:
    """(h, w) the share of each cell that a mask covers."""
    if mask.shape != image_hw:
        (h, w), (H, W) = mask.shape, image_hw
        raise UsageError(
            "The mask has another size than the image.",
            found=f"The mask is {w} x {h} pixels, the image {W} x {H}.",
            repair="Give a mask of the upright image.",
        )
    inside = mask > 0
    if not inside.any():
        raise UsageError(
            "The region is empty.",
            found="The mask has no pixel inside.",
            repair="Give a mask with at least one pixel above 0.",
        )
    return resize_truth(torch.from_numpy(inside)[None], grid)[0].numpy()


def _overlap(start: float, end: float, pixels: int, cells: int) -> Any:
    """(cells,) the share of each cell that [start, end) covers."""
    edges = np.linspace(0, pixels, cells + 1)
    shared = np.minimum(edges[1:], end) - np.maximum(edges[:-1], start)
    return np.clip(shared, 0, None) / (pixels / cells)


def _spread(shares: Any) -> Floats:
    """(h, w) shares of cells with those around them, at most 1."""
    spread = gaussian_filter(np.asarray(shares, np.float64), REACH, mode="constant")
    return np.asarray(spread / spread.max(), np.float32)
