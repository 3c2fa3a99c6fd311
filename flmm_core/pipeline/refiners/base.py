"""The two halves of a refiner: a frozen image encoder and a trained part."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any, Self

import torch
from PIL import Image
from torch import Tensor, nn

from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.resample import resize as resize
from flmm_core.pipeline.types import EncodedImage


class ImageEncoder(ABC):
    """The frozen half.

    A plain object and not an `nn.Module`, so that its weights can reach neither an optimizer nor
    a checkpoint. `prepare` runs in DataLoader workers; pickling an encoder must leave out its
    weights.
    """

    embedding_shape: tuple[int, int, int]
    """(E, g, g) of one image."""
    detail_shapes: tuple[tuple[int, int, int], ...] = ()
    """Of `EncodedImage.details`."""

    @property
    def size(self) -> int:
        """How many numbers one encoded image has."""
        return sum(map(prod, (self.embedding_shape, *self.detail_shapes)))

    @abstractmethod
    def prepare(self, image: Image.Image) -> Tensor:
        """One image as the input of `encode`, on the CPU; needs no weights."""

    @abstractmethod
    def encode(self, images: Sequence[Tensor]) -> tuple[EncodedImage, ...]:
        """Embeddings of prepared images, at least one, without gradient."""

    @abstractmethod
    def to(self, device: torch.device | str) -> Self:
        """Move the weights; returns itself."""


class Refiner(nn.Module, ABC):
    """The trained half: coarse logits + encoded image + text prompts -> refined logits.

    Its `state_dict()` is saved with the head, unfiltered.

    Attributes:
        uses_text: Whether `forward` reads text prompts.
        prompt_width: E, the width of a text prompt; read only with `uses_text`.
    """

    uses_text: bool = False
    prompt_width: int = 0

    @classmethod
    @abstractmethod
    def load(
        cls, options: Any, *, weights: Path | None = None, paper_rounding: bool = False
    ) -> tuple[ImageEncoder | None, Self]:
        """Both halves with pretrained weights, on the CPU; no encoder if it needs no image.

        Args:
            options: An instance of the options class that the refiner's spec names.
            weights: Weights file or folder; None takes the packaged one, if there is one.
            paper_rounding: Compute as the original F-LMM does.

        Raises:
            WeightsError: The weights are missing or do not fit.
        """

    @classmethod
    def check(cls, options: Any, weights: Path | None = None) -> None:
        """What `load` would refuse, in a moment: looks at the weights without loading them.

        Raises:
            WeightsError: They are missing or do not fit.
        """

    @classmethod
    def weights_file(cls, options: Any) -> str:
        """The usual name of the file that `load` needs with these options; empty if none."""
        return ""

    @classmethod
    def reads_text(cls, options: Any) -> bool:
        """Whether a refiner with these options reads text prompts, without loading it."""
        return cls.uses_text

    @classmethod
    def embedding_facts(cls, options: Any, weights: Path | None) -> dict[str, Any]:
        """What an image's embedding depends on, for caches; empty without an image encoder.

        Plain values by name; a `Path` stands for the contents of a file or folder.
        """
        return {}

    @abstractmethod
    def forward(
        self,
        images: Sequence[EncodedImage | None],
        coarse: Sequence[Tensor],
        prompts: Sequence[Sequence[Tensor]],
        image_hw: Sequence[tuple[int, int]],
    ) -> tuple[MaskLogits, ...]:
        """Refine all masks of a batch together: per sample, P masks of the image's size.

        Args:
            images: Per sample, the output of `ImageEncoder.encode`; None without an encoder.
            coarse: Per sample, (P, h, w) logits that cover exactly the image.
            prompts: Per sample and phrase, (T_p, E) text prompts; empty unless `uses_text`.
            image_hw: Per sample, H and W.
        """
