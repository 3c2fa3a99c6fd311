"""SAM 2 as a refiner: a frozen image encoder, a trained prompt encoder and mask decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from flmm_core.pipeline.refiners import Sam2Options
from flmm_core.pipeline.refiners.encoding import SquareEncoder
from flmm_core.pipeline.refiners.prompted import PromptedRefiner
from flmm_core.pipeline.refiners.sam2_decoder import decode, pad
from flmm_core.pipeline.refiners.sam2_model import (
    OFFICIAL,
    Sam2Parts,
    build_sam2,
    check_sam2,
    find_sam2,
)
from flmm_core.pipeline.resample import resize


class Sam2Encoder(SquareEncoder):
    """SAM 2's frozen image encoder; `half` encodes in bfloat16.

    Its details are the maps of higher resolution that the mask decoder adds: (E/8, 4g, 4g) and
    (E/4, 2g, 2g).
    """

    def __init__(self, sam: Sam2Parts, *, half: bool = False) -> None:
        super().__init__(sam.image_encoder, sam.image_size, half=half)
        width, grid = sam.width, sam.grid
        self.embedding_shape = (width, grid, grid)
        self.detail_shapes = (
            (width // 8, 4 * grid, 4 * grid),
            (width // 4, 2 * grid, 2 * grid),
        )

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The image fills the square, whatever its shape."""
        return self.image_size, self.image_size

    def square(self, image: Tensor) -> Tensor:
        """(3, S, S) uint8 -> (3, S, S) normalized."""
        return self.normalized(image)


class Sam2Refiner(PromptedRefiner):
    """Prompts SAM 2 with each coarse mask, its bounding box and the text prompts of its phrase.

    Args:
        sam: Its prompt encoder and mask decoder are trained.
        prompting: As for `PromptedRefiner`.
    """

    def __init__(self, sam: Sam2Parts, **prompting: bool) -> None:
        super().__init__(sam.image_size, sam.grid, sam.width, **prompting)
        self.shared_image_embedding = sam.positions
        self.prompt_encoder = sam.prompt_encoder.requires_grad_(True)
        self.mask_decoder = sam.mask_decoder.requires_grad_(True)
        pad(self.mask_decoder)
        # Freeze what `forward` never reaches; distributed training would wait for its gradient.
        prompts, decoder = self.prompt_encoder, self.mask_decoder
        unused: list[nn.Module] = [decoder.iou_prediction_head, decoder.pred_obj_score_head]
        unused += [] if self.box else [prompts.point_embed]
        unused += [prompts.no_mask_embed if self.mask else prompts.mask_embed]
        for module in unused:
            module.requires_grad_(False)

    @classmethod
    def load(
        cls, options: Sam2Options, *, weights: Path | None = None, paper_rounding: bool = False
    ) -> tuple[Sam2Encoder, Self]:
        """As `Refiner.load`; the original F-LMM has no SAM 2 whose rounding could be met."""
        sam = build_sam2(options.size, weights)
        return Sam2Encoder(sam, half=options.half), cls(sam, **options.prompting())

    @classmethod
    def check(cls, options: Sam2Options, weights: Path | None = None) -> None:
        check_sam2(options.size, weights)

    @classmethod
    def weights_file(cls, options: Sam2Options) -> str:
        return "" if options.size == "tiny" else OFFICIAL[options.size].hub

    @classmethod
    def embedding_facts(cls, options: Sam2Options, weights: Path | None) -> dict[str, Any]:
        found = find_sam2(options.size, weights)
        return {"size": options.size, "half": options.half, "weights": found}

    def _canvas(self, input_hw: tuple[int, int]) -> None:
        return None

    def _mask_prompts(self, coarse: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """(P, h, w) coarse logits -> (P, 1, 4g, 4g): as the image, they fill the square."""
        return resize(coarse, (4 * self.grid, 4 * self.grid))[:, None]

    def _embed_prompts(self, masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        # Without a box, SAM 2 is told of a point that is none.
        nowhere, none = masks.new_zeros(1, 1, 1, 2), masks.new_full((1, 1, 1), -1)
        sparse, dense = self.prompt_encoder(
            input_points=None if self.box else nowhere,
            input_labels=None if self.box else none.int(),
            input_boxes=boxes[:, None] if self.box else None,
            input_masks=masks if self.mask else None,
        )  # (N or 1, 1, 3 or 2, E), (N or 1, E, g, g)
        return sparse[:, 0], dense, self._position()

    def _position(self) -> Tensor:
        """(1, E, g, g) of the cells."""
        weight = self.shared_image_embedding.positional_embedding
        places = torch.arange(self.grid, device=weight.device, dtype=weight.dtype)
        places = (places + 0.5) / self.grid
        y, x = torch.meshgrid(places, places, indexing="ij")
        encoded: Tensor = self.shared_image_embedding(torch.stack([x, y], dim=-1))  # (g, g, E)
        return encoded.permute(2, 0, 1)[None]

    def _decode_chunk(
        self,
        dense: Tensor,
        position: Tensor,
        tokens: Tensor,
        real: Tensor | None,
        details: Sequence[Tensor],
    ) -> Tensor:
        candidates = decode(self.mask_decoder, dense, position, tokens, real, details)
        return candidates[:, 1:] if self.multimask else candidates[:, :1]
