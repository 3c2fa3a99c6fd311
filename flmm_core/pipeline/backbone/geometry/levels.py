"""How bright gray comes out of a processor that rounds: its ramps are steps, and not straight.

In bfloat16 a coordinate is off by up to 1/512 of the image, always the same way: the mean of many
elements is no better. So gray images are encoded, and what became of each gray is looked up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

SIDE = 64
"""Of the gray images, in pixels."""

Encode = Callable[[Image.Image], Iterable[Tensor]]
"""Gives the pixel tensors of an image."""


def is_rounded(values: Tensor) -> bool:
    """Whether all values have the 8 bits of bfloat16 and no more."""
    return torch.equal(values.bfloat16().to(values.dtype), values)


class Levels:
    """What each of 256 grays becomes, from 0 for black to 1 for white."""

    def __init__(self, encode: Encode) -> None:
        """Encodes 256 small images."""
        levels = range(256)
        grays = (Image.new("RGB", (SIDE, SIDE), (level,) * 3) for level in levels)
        sums = [sum(float(one.double().sum()) for one in encode(gray)) for gray in grays]
        fractions = (np.array(sums) - sums[0]) / (sums[-1] - sums[0])
        # rounding can give two grays one value
        self.fractions, first = np.unique(fractions, return_index=True)
        self.levels = first / 255

    def undo(self, coordinates: Tensor) -> Tensor:
        """Float32 coordinates as they were before rounding, of the same shape."""
        found = np.interp(coordinates.numpy(), self.fractions, self.levels)
        return torch.from_numpy(found).float()
