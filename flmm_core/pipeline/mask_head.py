"""Stage 3: attention maps -> coarse logits that cover exactly the image."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Box
from flmm_core.pipeline.unet import STRIDE, UNet

CHUNK = 64
"""The most masks that pass the U-Net at once; bounds the memory of captions with many phrases."""


class MaskHead(nn.Module):
    """Upsamples the maps, runs the U-Net, and crops its output to the image.

    Maps of equal shape pass the U-Net together, whatever their sample. Its normalization sees
    padding, so maps of different shapes are never padded to one: the logits of a sample do not
    depend on the rest of its batch.

    Args:
        in_channels: C.
        base_channels: Width of the U-Net's first stage.
        enlarge_to: The least number of cells along the longest side of the U-Net's input.
        paper_rounding: Crop to the image at whole cells as the original F-LMM does, which shifts
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
        self.enlarge_to = enlarge_to
        self.paper_rounding = paper_rounding
        self.unet = UNet(in_channels, base_channels)

    def forward(self, maps: Sequence[AttentionMaps]) -> tuple[Tensor, ...]:
        """Coarse logits per sample, (P, h, w) float32, covering exactly the image.

        A sample without phrases gives (0, h, w), part of the autograd graph like any other.
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
                logits[index] = self._crop_to_image(grid, (h, w), maps[index].image_box)
        return tuple(logits[index] for index in range(len(maps)))

    def channel_weights(self, maps: AttentionMaps) -> Tensor:
        """(P, C), the mix of channels that each phrase's mask rests on; each row adds up to 1.

        As in Grad-CAM (Selvaraju et al., 2017): how much more of a channel raises the coarse
        logits where the mask is, averaged over its cells; channels that lower them count as 0.
        """
        with torch.enable_grad():
            leaf = maps.maps.detach().clone().float().requires_grad_()
            (logits,) = self([AttentionMaps(leaf, maps.image_box)])
            inside = logits.detach().sigmoid()
            (slopes,) = torch.autograd.grad((logits * inside).sum(), leaf)
        weights = slopes.mean((2, 3)).clamp(min=0) + torch.finfo(torch.float32).tiny
        return weights / weights.sum(1, keepdim=True)  # (P, C)

    def _scale(self, grid_hw: tuple[int, int]) -> float:
        scale = max(1.0, self.enlarge_to / max(grid_hw))
        if scale > 1.0 and not self.paper_rounding:
            # 49 * (64 / 49) is slightly below 64, and interpolate would drop the last cell.
            scale = math.nextafter(scale, math.inf)
        return scale

    def _grid_logits(self, maps: Tensor) -> Tensor:
        """(P, C, h, w) maps -> (P, h', w') logits of the upsampled grid."""
        h, w = maps.shape[-2:]
        scale = self._scale((h, w))
        if scale > 1.0:
            maps = F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
        h, w = maps.shape[-2:]
        padded = F.pad(maps, (0, -w % STRIDE, 0, -h % STRIDE))
        logits: Tensor = self.unet(padded)
        return logits[:, 0, :h, :w].float()  # (P, h', w')

    def _crop_to_image(self, grid: Tensor, maps_hw: tuple[int, int], box: Box) -> Tensor:
        """(P, h', w') logits of a grid located at `box` -> (P, h, w) of exactly the image."""
        if self.paper_rounding:
            top, left, h, w = paper_crop(box, (grid.shape[1], grid.shape[2]))
            return grid[:, top : top + h, left : left + w]
        scale = self._scale(maps_hw)
        y0, x0, y1, x1 = box
        # The upsampled grid has whole cells only, so it may cover slightly less than the maps.
        cell_h, cell_w = (y1 - y0) / (maps_hw[0] * scale), (x1 - x0) / (maps_hw[1] * scale)
        covered = (y0, x0, y0 + grid.shape[1] * cell_h, x0 + grid.shape[2] * cell_w)
        size = max(1, round(1 / cell_h)), max(1, round(1 / cell_w))
        return resample(grid[:, None], covered, WHOLE_IMAGE, size)[:, 0]  # (P, h, w)


def paper_crop(box: Box, grid_hw: tuple[int, int]) -> tuple[int, int, int, int]:
    """The crop of the original F-LMM to the image, for a grid located at `box`.

    The start is rounded down and the size to the nearest cell, so the crop can be off by a cell.

    Returns:
        (top, left, height, width) in cells, within the grid and at least 1x1.
    """
    starts, sizes = [], []
    for start, end, cells in zip(box[:2], box[2:], grid_hw, strict=True):
        per_image = cells / (end - start)
        # The box is a fraction; the epsilon keeps 42.5 from becoming 42.4999.
        starts.append(min(max(0, int(-start * per_image + 1e-6)), cells - 1))
        sizes.append(min(max(1, int(per_image + 0.5 + 1e-6)), cells - starts[-1]))
    return starts[0], starts[1], sizes[0], sizes[1]
