"""What a refiner is made of: a frozen image encoder and a trained part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from flmm_core.pipeline.types import EncodedImage
from flmm_core.spec import RefinerOptions


class ImageEncoder(ABC):
    """The frozen half of a refiner.

    A plain object and not an `nn.Module`, so that its weights can reach neither an optimizer nor
    a checkpoint. `prepare` runs in DataLoader workers: a pickled encoder leaves its weights behind.

    Attributes:
        embedding_shape: (E, g, g) of one image's embedding.
    """

    embedding_shape: tuple[int, int, int]

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """One image on the CPU, as `encode` takes it; needs no weights."""

    @abstractmethod
    def encode(self, images: Sequence[Tensor]) -> tuple[EncodedImage, ...]:
        """Embeddings of prepared images; a tensor given twice is encoded once."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the weights; gives itself."""


class Refiner(nn.Module, ABC):
    """The trained half: coarse logits and the encoded image -> logits at the image's size.

    Its `state_dict()` goes into a head's file as it is.

    Attributes:
        uses_text: Whether `forward` reads text prompts.
        prompt_width: E, the width of a text prompt; 0 if it reads none.
    """

    uses_text: bool = False
    prompt_width: int = 0

    @classmethod
    @abstractmethod
    def load(
        cls, options: Any, *, weights: Path | None = None, paper_rounding: bool = False
    ) -> tuple[ImageEncoder | None, Self]:
        """Both halves with pretrained weights, on the CPU.

        Args:
            options: What the refiner's spec declares, validated (`RefinerOptions`).
            weights: The user's own weights file or folder; None takes the packaged one, if any.
            paper_rounding: Compute as the original F-LMM does.

        Returns:
            The frozen image encoder, None if no image is needed, and the trained half.

        Raises:
            WeightsError: The weights are missing or do not fit.
        """

    @abstractmethod
    def forward(
        self,
        images: Sequence[EncodedImage | None],
        coarse: Sequence[Tensor],
        prompts: Sequence[Sequence[Tensor]],
        image_hw: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, ...]:
        """Refine all masks of a batch together.

        Args:
            images: Per sample, what `ImageEncoder.encode` gave; None without an encoder.
            coarse: Per sample, (P, h, w) logits that cover exactly the image.
            prompts: Per sample and phrase, (T_p, E) text prompts; empty unless `uses_text`.
            image_hw: Per sample, height and width of the image in pixels.

        Returns:
            Per sample, (P, H, W) logits at the image's size.
        """


__all__ = ["ImageEncoder", "Refiner", "RefinerOptions"]
