"""Tight boxes of masks, in pixels."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor


def tight_boxes(masks: Tensor) -> Tensor:
    """The smallest box around each mask.

    Args:
        masks: (P, H, W) bool.

    Returns:
        (P, 4) int64 (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros for an empty mask.
    """
    x0, x1 = _span(masks.any(dim=1))
    y0, y1 = _span(masks.any(dim=2))
    return torch.stack([x0, y0, x1, y1], dim=-1)  # (P, 4)


def enlarged_boxes(maps: Tensor, size: tuple[int, int], threshold: float) -> Tensor:
    """`tight_boxes` of maps that are first enlarged and then compared, without enlarging them.

    Between the centres of four cells the enlarged map is linear along rows and along columns, so
    its largest pixel there is one of the four outermost. Those say between which centres a box
    ends; only the pixels next to that place are then looked at. Work and memory grow with the
    sides of the image's grid, not with its pixels.

    Args:
        maps: (P, h, w) floating.
        size: (H, W) pixels, to which the maps are resized bilinearly, cell edges aligned.
        threshold: What a pixel must exceed.

    Returns:
        (P, 4) int64 (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros for an empty mask.
    """
    rows, columns = (
        _axis(cells, pixels, maps.dtype, maps.device)
        for cells, pixels in zip(maps.shape[1:], size, strict=True)
    )
    of_columns = rows.sample(maps, rows.outermost).transpose(1, 2).contiguous()  # (P, w, R)
    of_rows = columns.sample(maps.transpose(1, 2).contiguous(), columns.outermost)  # (P, C, h)
    x0, x1 = columns.extent(of_columns, threshold)
    y0, y1 = rows.extent(of_rows.transpose(1, 2).contiguous(), threshold)
    return torch.stack([x0, y0, x1, y1], dim=-1)  # (P, 4)


class _Axis:
    """One axis of a bilinear resize: between which cells each pixel lies.

    Attributes:
        outermost: (E,) the first and the last pixel between two neighbouring centres.
    """

    def __init__(self, cells: int, pixels: int, dtype: torch.dtype, device: torch.device) -> None:
        places = (torch.arange(pixels, dtype=torch.float32) + 0.5) * (cells / pixels) - 0.5
        places = places.clamp(min=0)
        low = places.long().clamp(max=cells - 1)
        change = low.diff() != 0
        edge = torch.ones(1, dtype=torch.bool)
        ends = torch.cat([edge, change]) | torch.cat([change, edge])
        self.low, self.high = low.to(device), (low + 1).clamp(max=cells - 1).to(device)
        self.share = (places - low).to(device, dtype)
        self.outermost = ends.nonzero()[:, 0].to(device)
        self.window = torch.arange(int(low.bincount().amax()), device=device)
        self.last = pixels - 1

    def sample(self, maps: Tensor, pixels: Tensor) -> Tensor:
        """(P, cells, n) at the pixels (k,), or (P, k) of each map its own: (P, k, n)."""
        low, high, share = (x[pixels][..., None] for x in (self.low, self.high, self.share))
        if pixels.dim() == 1:
            below, above = (maps.index_select(1, at[:, 0]) for at in (low, high))
        else:
            below, above = (maps.gather(1, at.expand(-1, -1, maps.shape[2])) for at in (low, high))
        return below.lerp(above, share)

    def extent(self, maps: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
        """First pixel above the threshold and the one after the last, (P,) each; 0 and 0 if none.

        Args:
            maps: (P, cells, n), of which any of n may be above.
            threshold: As above.
        """
        first, end = _span(self.sample(maps, self.outermost).amax(dim=2) > threshold)
        first, last = self.outermost[first], self.outermost[(end - 1).clamp(min=0)]
        before = (first[:, None] - self.window).clamp(min=0)  # (P, k)
        after = (last[:, None] + self.window).clamp(max=self.last)  # (P, k)
        pixels = torch.cat([before, after], dim=1)
        above = self.sample(maps, pixels).amax(dim=2) > threshold  # (P, 2k)
        end = torch.where(above, pixels + 1, 0).amax(dim=1)
        return torch.where(above, pixels, self.last).amin(dim=1).minimum(end), end


_axis = lru_cache(maxsize=64)(_Axis)  # images of a data set have few sizes


def _span(occupied: Tensor) -> tuple[Tensor, Tensor]:
    """First occupied place and the one after the last, (P,) each, of (P, n) bool."""
    n = occupied.shape[1]
    place = torch.arange(n, device=occupied.device)
    if not occupied.shape[0]:
        return place.new_zeros(0), place.new_zeros(0)
    first = torch.where(occupied, place, n).amin(dim=1)
    end = torch.where(occupied, place + 1, 0).amax(dim=1)
    return torch.minimum(first, end), end
