"""The U-Net of the mask head.

Four stages of two 3x3 convolutions each, with skip connections. Module names are those of the
published F-LMM heads (`encoder.*`, `decoder.*`, `conv_seg.*`), so their weights load unchanged.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from flmm_core.pipeline.resample import bilinear

STAGES = 4
STRIDE = 2 ** (STAGES - 1)
"""Height and width of the input must be multiples of this many cells."""


def _conv(in_channels: int, out_channels: int, size: int) -> nn.Module:
    """Convolution without bias, GroupNorm with a single group, ReLU."""
    conv = nn.Conv2d(in_channels, out_channels, size, padding=size // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, gn=nn.GroupNorm(1, out_channels), relu=nn.ReLU()))


def _two_convs(in_channels: int, out_channels: int) -> nn.Module:
    convs = _conv(in_channels, out_channels, 3), _conv(out_channels, out_channels, 3)
    return nn.Sequential(OrderedDict(convs=nn.Sequential(*convs)))


class Doubled(nn.Module):
    """(P, C, h, w) -> (P, C, 2h, 2w), bilinear."""

    def forward(self, maps: Tensor) -> Tensor:
        return bilinear(maps, (2 * maps.shape[2], 2 * maps.shape[3]))


class Narrowed(nn.Sequential):
    """Doubles the cells of a stage, and halves its channels by a 1x1 convolution.

    Mixing channels and interpolating between cells commute, so the channels are mixed first, where
    there are a quarter as many cells.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(Doubled(), _conv(in_channels, out_channels, 1))

    def forward(self, maps: Tensor) -> Tensor:
        """(P, in, h, w) -> (P, out, 2h, 2w)."""
        parts: Any = self
        doubled, (conv, norm, activation) = parts
        return activation(norm(doubled(conv(maps))))  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    """Upsamples the deeper stage and merges it with the skip connection of the same size."""

    def __init__(self, below_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.conv_block = _two_convs(2 * skip_channels, skip_channels)
        narrowed = Narrowed(below_channels, skip_channels)
        self.upsample = nn.Sequential(OrderedDict(interp_upsample=narrowed))

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """(P, skip, 2h, 2w) and (P, below, h, w) -> (P, skip, 2h, 2w)."""
        return self.conv_block(torch.cat([skip, self.upsample(below)], dim=1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Attention maps -> one logit per cell.

    Args:
        in_channels: C.
        base_channels: Width of the first stage; it doubles from stage to stage.
    """

    def __init__(self, in_channels: int, base_channels: int = 64) -> None:
        super().__init__()
        widths = [base_channels * 2**stage for stage in range(STAGES)]
        self.encoder = nn.ModuleList([nn.Sequential(_two_convs(in_channels, widths[0]))])
        for narrow, wide in itertools.pairwise(widths):
            self.encoder.append(nn.Sequential(nn.MaxPool2d(2), _two_convs(narrow, wide)))
        self.decoder = nn.ModuleList(
            UpBlock(wide, narrow) for narrow, wide in itertools.pairwise(widths)
        )
        self.conv_seg = nn.Conv2d(base_channels, 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Small, so that every cell starts at a probability of about one half.
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """(P, C, h, w) -> (P, 1, h, w) logits; h and w are multiples of `STRIDE`."""
        skips: list[Tensor] = []
        # The faster layout on a CPU for maps of equal shape.
        is_cpu = maps.device.type == "cpu"
        x = maps.contiguous(memory_format=torch.channels_last) if is_cpu else maps
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(skip, x)
        return self.conv_seg(x)  # type: ignore[no-any-return]
