"""Stage 3: attention maps -> coarse logits that cover exactly the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_PICTURE, AttentionMaps, Box
from flmm_core.pipeline.unet import STRIDE, UNet

CHUNK = 64
"""Most masks that pass the U-Net at once; bounds the memory of captions with many phrases."""


class MaskHead(nn.Module):
    """Enlarges the maps, runs the U-Net, and cuts the image out of what comes.

    Maps of equal shape, of whichever sample, pass the U-Net together. Its normalisation sees the
    padding, so maps of different shapes are never padded to one: what a sample gives does not
    depend on its companions.

    Args:
        in_channels: C, attention channels of the backbone.
        base_channels: Width of the U-Net's first stage.
        enlarge_to: Cells of the longest side that the U-Net sees, at least.
        paper_rounding: Cut the image out at whole cells as the original F-LMM does, shifting
            the mask by up to a cell, instead of exactly.
    """

    def __init__(
        self,
        in_channels: int,
        base_channels: int = 64,
        enlarge_to: int = 64,
        paper_rounding: bool = False,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.base_channels = base_channels
        self.enlarge_to = enlarge_to
        self.paper_rounding = paper_rounding
        self.unet = UNet(in_channels, base_channels)

    def forward(self, maps: Sequence[AttentionMaps]) -> tuple[Tensor, ...]:
        """Coarse logits per sample, (P, h, w) float32, covering exactly the image.

        A sample without phrases gives (0, h, w), attached to the graph like any other.
        """
        buckets: dict[tuple[int, ...], list[int]] = {}
        for index, sample in enumerate(maps):
            buckets.setdefault(tuple(sample.maps.shape[-2:]), []).append(index)

        device = self.unet.conv_seg.weight.device
        logits: dict[int, Tensor] = {}
        for (h, w), members in buckets.items():
            counts = [len(maps[index].maps) for index in members]
            stacked = torch.cat([maps[index].maps.to(device).float() for index in members])
            grids = torch.cat([self._grid_logits(part) for part in torch.split(stacked, CHUNK)])
            for index, grid in zip(members, torch.split(grids, counts), strict=True):
                logits[index] = self._cut_image(grid, (h, w), maps[index].image_box)
        return tuple(logits[index] for index in range(len(maps)))

    def _scale(self, grid_hw: tuple[int, int]) -> float:
        scale = max(1.0, self.enlarge_to / max(grid_hw))
        if scale > 1.0 and not self.paper_rounding:
            # 49 * (64 / 49) is a hair below 64, and interpolate would drop the last cell.
            scale = math.nextafter(scale, math.inf)
        return scale

    def _grid_logits(self, maps: Tensor) -> Tensor:
        """(P, C, h, w) maps -> (P, h', w') logits of the enlarged grid."""
        h, w = maps.shape[-2:]
        scale = self._scale((h, w))
        if scale > 1.0:
            maps = F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
        h, w = maps.shape[-2:]
        padded = F.pad(maps, (0, -w % STRIDE, 0, -h % STRIDE))
        logits: Tensor = self.unet(padded)
        return logits[:, 0, :h, :w].float()  # (P, h', w')

    def _cut_image(self, grid: Tensor, maps_hw: tuple[int, int], box: Box) -> Tensor:
        """(P, h', w') logits of a grid that lies at `box` -> (P, h, w) of exactly the image."""
        if self.paper_rounding:
            top, left, h, w = paper_crop(box, (grid.shape[1], grid.shape[2]))
            return grid[:, top : top + h, left : left + w]
        scale = self._scale(maps_hw)
        y0, x0, y1, x1 = box
        # The enlarged grid has whole cells only, so it may cover a little less than the maps did.
        cell_h, cell_w = (y1 - y0) / (maps_hw[0] * scale), (x1 - x0) / (maps_hw[1] * scale)
        covered = (y0, x0, y0 + grid.shape[1] * cell_h, x0 + grid.shape[2] * cell_w)
        size = max(1, round(1 / cell_h)), max(1, round(1 / cell_w))
        return resample(grid[:, None], covered, WHOLE_PICTURE, size)[:, 0]  # (P, h, w)


def paper_crop(box: Box, grid_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """Where the original F-LMM cuts the image out of a grid that lies at `box`.

    The start is rounded down and the size to the nearest cell; the image really lies up to a
    cell elsewhere.

    Returns:
        (top, left, height, width) in cells, within the grid and at least 1x1.
    """
    y0, x0, y1, x1 = box
    top, height = _paper_span(y0, y1, grid_hw[0])
    left, width = _paper_span(x0, x1, grid_hw[1])
    return top, left, height, width


def _paper_span(start: float, end: float, cells: int) -> tuple[int, int]:
    per_image = cells / (end - start)
    # The box is a fraction; a hair is added so that 42.5 does not become 42.4999.
    first = min(max(0, int(-start * per_image + 1e-6)), cells - 1)
    return first, min(max(1, int(per_image + 0.5 + 1e-6)), cells - first)
