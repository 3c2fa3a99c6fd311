"""The U-Net of the mask head.

Four stages of two 3x3 convolutions each, joined by skips. Module names are those of the published
F-LMM heads (`encoder.*`, `decoder.*`, `conv_seg.*`), so their weights load as they are.
"""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

STAGES = 4
STRIDE = 2 ** (STAGES - 1)
"""Height and width of the input must be multiples of this many cells."""


class ConvNormAct(nn.Module):
    """Convolution without bias, GroupNorm over all channels at once, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=False
        )
        self.gn = nn.GroupNorm(1, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """(P, in, h, w) -> (P, out, h, w)."""
        return torch.relu(self.gn(self.conv(x)))


class ConvBlock(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(
            ConvNormAct(in_channels, out_channels, 3), ConvNormAct(out_channels, out_channels, 3)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(P, in, h, w) -> (P, out, h, w)."""
        return self.convs(x)  # type: ignore[no-any-return]


class Upsample(nn.Module):
    """Twice as many cells each way, then a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.interp_upsample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            ConvNormAct(in_channels, out_channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(P, in, h, w) -> (P, out, 2h, 2w)."""
        return self.interp_upsample(x)  # type: ignore[no-any-return]


class UpBlock(nn.Module):
    """Joins what comes from below with the skip of the same size."""

    def __init__(self, below_channels: int, skip_channels: int) -> None:
        super().__init__()
        self.conv_block = ConvBlock(2 * skip_channels, skip_channels)
        self.upsample = Upsample(below_channels, skip_channels)

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        """(P, skip, 2h, 2w) and (P, below, h, w) -> (P, skip, 2h, 2w)."""
        return self.conv_block(torch.cat([skip, self.upsample(below)], dim=1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """Attention maps in, one logit a cell out.

    Args:
        in_channels: C, attention heads of all layers and views.
        base_channels: Width of the first stage; it doubles from stage to stage.
    """

    def __init__(self, in_channels: int, base_channels: int = 64) -> None:
        super().__init__()
        widths = [base_channels * 2**stage for stage in range(STAGES)]
        self.encoder = nn.ModuleList([nn.Sequential(ConvBlock(in_channels, widths[0]))])
        for narrow, wide in itertools.pairwise(widths):
            self.encoder.append(nn.Sequential(nn.MaxPool2d(2), ConvBlock(narrow, wide)))
        self.decoder = nn.ModuleList(
            UpBlock(wide, narrow) for narrow, wide in itertools.pairwise(widths)
        )
        self.conv_seg = nn.Conv2d(base_channels, 1, 1)
        self._initialise()

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        # Small, so that every cell starts at about one half and not at a confident guess.
        nn.init.normal_(self.conv_seg.weight, std=0.01)
        nn.init.zeros_(self.conv_seg.bias)  # type: ignore[arg-type]

    def forward(self, maps: Tensor) -> Tensor:
        """(P, C, h, w) -> (P, 1, h, w) logits; h and w are multiples of `STRIDE`."""
        skips: list[Tensor] = []
        x = maps
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        skips.pop()
        for block, skip in zip(reversed(self.decoder), reversed(skips), strict=True):
            x = block(skip, x)
        return self.conv_seg(x)  # type: ignore[no-any-return]
