"""No refinement."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from torch import Tensor

from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.refiners.base import Refiner
from flmm_core.pipeline.types import EncodedImage


class NoRefiner(Refiner):
    """The coarse logits, enlarged to the image; nothing is trained."""

    @classmethod
    def load(
        cls, options: Any, *, weights: Path | None = None, paper_rounding: bool = False
    ) -> tuple[None, Self]:
        return None, cls()

    def forward(
        self,
        images: Sequence[EncodedImage | None],
        coarse: Sequence[Tensor],
        prompts: Sequence[Sequence[Tensor]],
        image_hw: Sequence[tuple[int, int]],
    ) -> tuple[MaskLogits, ...]:
        """As `Refiner.forward`; reads only `coarse` and `image_hw`."""
        return tuple(map(MaskLogits, coarse, image_hw))
