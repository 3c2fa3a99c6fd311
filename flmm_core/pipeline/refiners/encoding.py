"""The image encoders of SAM and SAM 2: one way to freeze, batch and pickle them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from flmm_core.images import to_image
from flmm_core.pipeline.refiners.base import ImageEncoder
from flmm_core.pipeline.types import EncodedImage

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)
"""Of the colors that both were trained on, 0 to 255."""

ENCODED_PIXELS = 1024 * 1024
"""The image encoder sees at most this many pixels at a time (at least one image)."""


class SquareEncoder(ImageEncoder):
    """A frozen network that reads normalized squares of S × S pixels.

    Args:
        module: (B, 3, S, S) -> (B, E, g, g), and further maps of higher resolution or none.
        half: Encode in bfloat16.
    """

    def __init__(self, module: nn.Module, image_size: int, *, half: bool = False) -> None:
        self.image_size = image_size
        self.half = half
        self.module: nn.Module = module.requires_grad_(False).eval()
        self.pixel_mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
        self.pixel_std = torch.tensor(PIXEL_STD).view(3, 1, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "module"}

    def to(self, device: torch.device | str) -> Self:
        self.module.to(device)
        self.pixel_mean, self.pixel_std = self.pixel_mean.to(device), self.pixel_std.to(device)
        return self

    def prepare(self, image: Image.Image) -> Tensor:
        """(3, h, w) uint8 on the CPU, of the size that `resized` says."""
        small = to_image(image).resize(self.resized(image.size), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()

    @abstractmethod
    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Width and height of an image in the square, from those that it has."""

    @abstractmethod
    def square(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 -> (3, S, S) normalized."""

    def normalized(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 -> float32, on the device of the weights."""
        return (image.to(self.pixel_mean.device).float() - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> tuple[EncodedImage, ...]:
        return self.embed(images)

    def embed(self, images: Sequence[Tensor]) -> tuple[EncodedImage, ...]:
        """`encode` with gradients, for those who train the network."""
        squares = torch.stack([self.square(image) for image in images])
        at_a_time = max(1, ENCODED_PIXELS // self.image_size**2)
        with torch.autocast(squares.device.type, torch.bfloat16, enabled=self.half):
            parts = [self.module(part) for part in torch.split(squares, at_a_time)]
        # Of one kind, (images, e, k·g, k·g): the embedding, then the details.
        kinds = zip(*(part if isinstance(part, tuple) else (part,) for part in parts), strict=True)
        embeddings, *details = (torch.cat(kind).float() for kind in kinds)
        return tuple(
            EncodedImage(embedding, (image.shape[1], image.shape[2]), tuple(finer))
            for embedding, image, *finer in zip(embeddings, images, *details, strict=True)
        )
