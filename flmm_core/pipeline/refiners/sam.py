"""SAM as a refiner: a frozen image encoder, a trained prompt encoder and mask decoder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.pipeline.mask_logits import Canvas
from flmm_core.pipeline.refiners import SamOptions
from flmm_core.pipeline.refiners.encoding import SquareEncoder
from flmm_core.pipeline.refiners.kernels import padded_prompts
from flmm_core.pipeline.refiners.prompted import PromptedRefiner
from flmm_core.pipeline.refiners.sam_attention import fuse
from flmm_core.pipeline.refiners.sam_model import (
    OFFICIAL,
    TINY_FOLDER,
    SamParts,
    build_sam,
    check_sam,
)
from flmm_core.pipeline.resample import resize_twice

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder, PromptEncoder


class SamEncoder(SquareEncoder):
    """SAM's frozen image encoder; `half` encodes in bfloat16."""

    def __init__(self, sam: SamParts, *, half: bool = False) -> None:
        super().__init__(sam.image_encoder, sam.shape.image_size, half=half)
        self.embedding_shape = (sam.shape.out_chans, sam.shape.grid, sam.shape.grid)
        fuse(self.module)

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """The longest side has S pixels, as in segment-anything."""
        scale = self.image_size / max(size)
        w, h = (max(1, int(side * scale + 0.5)) for side in size)
        return w, h

    def square(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 -> (3, S, S) normalized, zeros to the right and below."""
        pixels = self.normalized(image)
        h, w = pixels.shape[-2:]
        return F.pad(pixels, (0, self.image_size - w, 0, self.image_size - h))


class SamRefiner(PromptedRefiner):
    """Prompts SAM with each coarse mask, its bounding box and the text prompts of its phrase.

    Args:
        sam: Its prompt encoder and mask decoder are trained.
        paper_rounding: Pad the mask prompts of a sample with the lowest logit of all its masks,
            as the original F-LMM does (a mask then depends on its companions), instead of each
            with its own.
        prompting: As for `PromptedRefiner`.
    """

    def __init__(self, sam: SamParts, *, paper_rounding: bool = False, **prompting: bool) -> None:
        shape = sam.shape
        super().__init__(shape.image_size, shape.grid, shape.out_chans, **prompting)
        self.paper_rounding = paper_rounding
        self.prompt_encoder: PromptEncoder = sam.prompt_encoder.requires_grad_(True)
        self.mask_decoder: MaskDecoder = sam.mask_decoder.requires_grad_(True)
        fuse(self.mask_decoder)
        # Freeze what `forward` never reaches; distributed training would wait for its gradient.
        points = list(self.prompt_encoder.point_embeddings)
        unused: list[nn.Module] = [*points[:2], self.prompt_encoder.not_a_point_embed]
        unused += [] if self.box else points[2:]
        downscaling = self.prompt_encoder.mask_downscaling
        unused += [self.prompt_encoder.no_mask_embed if self.mask else downscaling]
        for module in (*unused, self.mask_decoder.iou_prediction_head):
            module.requires_grad_(False)

    @classmethod
    def load(
        cls, options: SamOptions, *, weights: Path | None = None, paper_rounding: bool = False
    ) -> tuple[SamEncoder, Self]:
        sam = build_sam(options.size, weights)
        refiner = cls.of(sam, options, paper_rounding=paper_rounding)
        return SamEncoder(sam, half=options.half), refiner

    @classmethod
    def of(cls, sam: SamParts, options: SamOptions, *, paper_rounding: bool = False) -> Self:
        """The trained half of a SAM."""
        return cls(sam, paper_rounding=paper_rounding, **options.prompting())

    @classmethod
    def check(cls, options: SamOptions, weights: Path | None = None) -> None:
        check_sam(options.size, weights)

    @classmethod
    def weights_file(cls, options: SamOptions) -> str:
        return "" if options.size == "tiny" else OFFICIAL[options.size].file

    @classmethod
    def embedding_facts(cls, options: SamOptions, weights: Path | None) -> dict[str, Any]:
        return {"size": options.size, "half": options.half, "weights": weights or TINY_FOLDER}

    def _canvas(self, input_hw: tuple[int, int]) -> Canvas:
        return Canvas(self.image_size, input_hw)

    def _mask_prompts(self, coarse: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """(P, h, w) coarse logits -> (P, 1, 4g, 4g) on SAM's square, background outside."""
        square = self.image_size, self.image_size
        size = 4 * self.grid, 4 * self.grid
        if not len(coarse):
            return coarse.new_zeros(0, 1, *size)
        lowest = coarse.detach().amin(dim=(1, 2), keepdim=True)
        if self.paper_rounding:
            lowest = lowest.amin(dim=0, keepdim=True)
        lowest = lowest.clamp(max=-1)
        prompts = lowest + resize_twice(coarse - lowest, input_hw, square, size)
        return prompts[:, None]

    def _embed_prompts(self, masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sparse, dense = self.prompt_encoder(
            points=None, boxes=boxes if self.box else None, masks=masks if self.mask else None
        )  # k is 2 with a box, else 0
        return sparse, dense, self.prompt_encoder.get_dense_pe()

    def _decode_chunk(
        self,
        dense: Tensor,
        position: Tensor,
        tokens: Tensor,
        real: Tensor | None,
        details: Sequence[Tensor],
    ) -> Tensor:
        decoder = self.mask_decoder
        with padded_prompts(decoder.transformer, real, own=1 + decoder.num_mask_tokens):
            logits: Tensor
            logits, _ = decoder(
                image_embeddings=dense.new_zeros(1, dense.shape[1], 1, 1),
                image_pe=position,
                sparse_prompt_embeddings=tokens,
                dense_prompt_embeddings=dense,
                multimask_output=self.multimask,
            )
        return logits
