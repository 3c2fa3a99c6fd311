"""SAM as a refiner: a frozen image encoder, a trained prompt encoder and mask decoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.images import to_image
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.mask_logits import Canvas, MaskLogits, above, portions
from flmm_core.pipeline.refiners import SamOptions
from flmm_core.pipeline.refiners.base import ImageEncoder, Refiner
from flmm_core.pipeline.refiners.sam_attention import fuse, padded_prompts
from flmm_core.pipeline.refiners.sam_model import (
    OFFICIAL,
    TINY_FOLDER,
    SamParts,
    build_sam,
    check_sam,
)
from flmm_core.pipeline.resample import resize
from flmm_core.pipeline.types import EncodedImage

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder, PromptEncoder

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)

ENCODED_PIXELS = 1024 * 1024
"""The image encoder sees at most this many pixels at a time (at least one image)."""

DECODE_CHUNK = 32
"""Most masks per call of the mask decoder."""

DECODE_CPU_BYTES = 8 << 20
"""Most bytes of dense prompts per call on a CPU; beyond its caches, decoding is half as fast."""


class SamEncoder(ImageEncoder):
    """SAM's frozen image encoder; `half` encodes in bfloat16."""

    def __init__(self, sam: SamParts, *, half: bool = False) -> None:
        self.image_size = sam.shape.image_size
        self.embedding_shape = (sam.shape.out_chans, sam.shape.grid, sam.shape.grid)
        self.half = half
        self.module: nn.Module = sam.image_encoder.requires_grad_(False).eval()
        fuse(self.module)
        self.pixel_mean = torch.tensor(PIXEL_MEAN).view(3, 1, 1)
        self.pixel_std = torch.tensor(PIXEL_STD).view(3, 1, 1)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "module"}

    def to(self, device: torch.device | str) -> Self:
        self.module.to(device)
        self.pixel_mean, self.pixel_std = self.pixel_mean.to(device), self.pixel_std.to(device)
        return self

    def prepare(self, image: Image.Image) -> Tensor:
        """(3, h, w) uint8 on the CPU; the longest side has S pixels, as in segment-anything."""
        scale = self.image_size / max(image.size)
        w, h = (max(1, int(side * scale + 0.5)) for side in image.size)
        resized = to_image(image).resize((w, h), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> tuple[EncodedImage, ...]:
        squares = torch.stack([self.square(image) for image in images])
        at_a_time = max(1, ENCODED_PIXELS // self.image_size**2)
        with torch.autocast(squares.device.type, torch.bfloat16, enabled=self.half):
            parts = [self.module(part) for part in torch.split(squares, at_a_time)]
        embeddings = torch.cat(parts).float()  # (images, E, g, g)
        sizes = [(image.shape[1], image.shape[2]) for image in images]
        return tuple(map(EncodedImage, embeddings, sizes))

    def square(self, image: Tensor) -> Tensor:
        """(3, h, w) uint8 -> (3, S, S) normalized, zeros to the right and below."""
        pixels = (image.to(self.pixel_mean.device).float() - self.pixel_mean) / self.pixel_std
        h, w = pixels.shape[-2:]
        return F.pad(pixels, (0, self.image_size - w, 0, self.image_size - h))


class SamRefiner(Refiner):
    """Prompts SAM with each coarse mask, its bounding box and the text prompts of its phrase.

    Args:
        sam: Its prompt encoder and mask decoder are trained.
        mask: Prompt with the coarse logits; `box` and `text` are the other prompts.
        multimask: Predict three candidates and keep the one with the highest IoU with the coarse
            mask, both at the image's size, as the original F-LMM does.
        paper_rounding: Pad the mask prompts of a sample with the lowest logit of all its masks,
            as the original F-LMM does (a mask then depends on its companions), instead of each
            with its own.
    """

    def __init__(
        self,
        sam: SamParts,
        *,
        mask: bool = True,
        box: bool = True,
        text: bool = True,
        multimask: bool = False,
        paper_rounding: bool = False,
    ) -> None:
        super().__init__()
        self.image_size = sam.shape.image_size
        self.grid = sam.shape.grid
        self.prompt_width = sam.shape.out_chans
        self.mask, self.box, self.uses_text = mask, box, text
        self.multimask = multimask
        self.paper_rounding = paper_rounding
        self.prompt_encoder: PromptEncoder = sam.prompt_encoder.requires_grad_(True)
        self.mask_decoder: MaskDecoder = sam.mask_decoder.requires_grad_(True)
        fuse(self.mask_decoder)
        # Freeze what `forward` never reaches; distributed training would wait for its gradient.
        points = list(self.prompt_encoder.point_embeddings)
        unused: list[nn.Module] = [*points[:2], self.prompt_encoder.not_a_point_embed]
        unused += [] if box else points[2:]
        downscaling = self.prompt_encoder.mask_downscaling
        unused += [self.prompt_encoder.no_mask_embed if mask else downscaling]
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
        prompting = options.model_dump(exclude={"size", "half"})
        return cls(sam, paper_rounding=paper_rounding, **prompting)

    @classmethod
    def check(cls, options: SamOptions, weights: Path | None = None) -> None:
        check_sam(options.size, weights)

    @classmethod
    def weights_file(cls, options: SamOptions) -> str:
        return "" if options.size == "tiny" else OFFICIAL[options.size].file

    @classmethod
    def reads_text(cls, options: SamOptions) -> bool:
        return options.text

    @classmethod
    def embedding_facts(cls, options: SamOptions, weights: Path | None) -> dict[str, Any]:
        return {"size": options.size, "half": options.half, "weights": weights or TINY_FOLDER}

    def forward(
        self,
        images: Sequence[EncodedImage | None],
        coarse: Sequence[Tensor],
        prompts: Sequence[Sequence[Tensor]],
        image_hw: Sequence[tuple[int, int]],
    ) -> tuple[MaskLogits, ...]:
        """As `Refiner.forward`; every image must be encoded."""
        counts = [len(logits) for logits in coarse]
        if not sum(counts):
            return tuple(map(MaskLogits, coarse, image_hw))
        encoded = [image for image in images if image is not None]
        inputs_hw = [image.input_hw for image in encoded]
        masks = [self._mask_prompts(x, hw) for x, hw in zip(coarse, inputs_hw, strict=True)]
        boxes = [
            self._box_prompts(x, input_hw, hw)
            for x, input_hw, hw in zip(coarse, inputs_hw, image_hw, strict=True)
        ]
        texts = [text for sample in prompts for text in sample] if self.uses_text else None
        device = masks[0].device
        embeddings = torch.stack([image.embedding.to(device).float() for image in encoded])
        if len(counts) > 1:
            repeats = torch.tensor(counts, device=device)
            embeddings = embeddings.repeat_interleave(repeats, dim=0)  # (N, E, g, g), N masks
        candidates = self._decode(embeddings, torch.cat(masks), torch.cat(boxes), texts)
        return tuple(
            _best(part, MaskLogits(part[:, 0], hw, Canvas(self.image_size, input_hw)), logits)
            for part, logits, hw, input_hw in zip(
                torch.split(candidates, counts), coarse, image_hw, inputs_hw, strict=True
            )
        )

    def _mask_prompts(self, coarse: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """(P, h, w) coarse logits -> (P, 1, 4g, 4g) on SAM's square, background outside."""
        size, (h, w) = self.image_size, input_hw
        if not len(coarse):
            return coarse.new_zeros(0, 1, 4 * self.grid, 4 * self.grid)
        lowest = coarse.detach().amin(dim=(1, 2), keepdim=True)
        if self.paper_rounding:
            lowest = lowest.amin(dim=0, keepdim=True)
        prompts = []
        for part in portions(len(coarse), (size, size)):
            square = lowest.clamp(max=-1).expand(len(coarse), size, size)[part].clone()
            square[:, :h, :w] = resize(coarse[part], input_hw)
            prompts.append(resize(square, (4 * self.grid, 4 * self.grid)))
        return torch.cat(prompts)[:, None]

    @torch.no_grad()
    def _box_prompts(
        self, coarse: Tensor, input_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> Tensor:
        """(P, 4) (x0, y0, x1, y1) in pixels of SAM's square; the whole image for an empty mask."""
        found = [tight_boxes(mask) for _, mask in _enlarged(coarse, image_hw)]
        boxes = torch.cat([*found, torch.zeros(0, 4).to(coarse)]).to(coarse)
        (input_h, input_w), (h, w) = input_hw, image_hw
        empty = boxes[:, 2:].amax(dim=1, keepdim=True) == 0
        boxes = torch.where(empty, boxes.new_tensor([0.0, 0.0, w, h]), boxes)
        return boxes * boxes.new_tensor([input_w / w, input_h / h, input_w / w, input_h / h])

    def _decode(
        self, embeddings: Tensor, masks: Tensor, boxes: Tensor, texts: Sequence[Tensor] | None
    ) -> Tensor:
        """Candidates (N, K, 4g, 4g) of N masks; K = 3 with `multimask`, else 1.

        Phrases of different lengths are decoded together; padding has no weight.

        Args:
            embeddings: (N, E, g, g), or (1, E, g, g) if all masks are of one image.
            masks: (N, 1, 4g, 4g); `boxes` is (N, 4).
            texts: Per mask, (T_p, E).
        """
        with torch.autocast(masks.device.type, enabled=False):  # coordinates must not be rounded
            sparse, dense = self.prompt_encoder(
                points=None,
                boxes=boxes if self.box else None,
                masks=masks if self.mask else None,
            )  # (N or 1, 0 or 2, E), (N or 1, E, g, g)
            position = self.prompt_encoder.get_dense_pe()
        sparse = sparse.expand(len(masks), -1, -1)
        # SAM's decoder adds the dense prompt to the embedding of its one image. With the sum as
        # the prompt, one call decodes masks of different images and repeats no embedding.
        dense = dense + embeddings
        if len(dense) != len(masks):  # one image, no mask prompts
            dense = dense.expand(len(masks), -1, -1, -1)

        tokens, real = _join_prompts(sparse, texts)
        decoded = []
        at_once = DECODE_CHUNK
        if dense.device.type == "cpu":
            at_once = max(1, min(at_once, DECODE_CPU_BYTES // dense[0].nbytes))
        for start in range(0, len(masks), at_once):
            chunk = slice(start, start + at_once)
            with padded_prompts(self.mask_decoder, None if real is None else real[chunk]):
                logits, _ = self.mask_decoder(
                    image_embeddings=dense.new_zeros(1, dense.shape[1], 1, 1),
                    image_pe=position,
                    sparse_prompt_embeddings=tokens[chunk],
                    dense_prompt_embeddings=dense[chunk],
                    multimask_output=self.multimask,
                )
            decoded.append(logits)
        return torch.cat(decoded).float()


def _join_prompts(sparse: Tensor, texts: Sequence[Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """Prompt tokens (N, K, E), and (N, K) bool false at padding, None if there is none.

    `sparse` (N, k, E) holds the tokens that every mask has; `texts`, (T_p, E) each, are appended.
    """
    if texts is None:
        return sparse, None
    lengths = torch.tensor([len(text) for text in texts])
    words = nn.utils.rnn.pad_sequence(list(texts), batch_first=True).to(sparse)  # (N, T, E)
    tokens = torch.cat([sparse, words], dim=1)
    if (lengths == lengths[0]).all():
        return tokens, None
    lengths = lengths + sparse.shape[1]
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    return tokens, real.to(tokens.device)


def _enlarged(coarse: Tensor, image_hw: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """(p, H, W) bool coarse masks at the image's size, in parts of the (P, h, w) logits."""
    for part in portions(len(coarse), image_hw):
        yield part, above(coarse[part].sigmoid(), image_hw, 0.5)


def _best(candidates: Tensor, first: MaskLogits, coarse: Tensor) -> MaskLogits:
    """Per mask, the candidate with the highest IoU with the coarse mask, the first of equals.

    Masks are compared at the image's size.

    Args:
        candidates: (P, K, 4g, 4g).
        first: The first of each mask's candidates.
        coarse: (P, h, w).
    """
    count = candidates.shape[1]
    if count == 1:
        return first
    chosen: list[int] = []
    with torch.no_grad():
        for part, ours in _enlarged(coarse, first.image_hw):
            masks = (replace(first, low=candidates[part, k]).masks() for k in range(count))
            ious = [_iou(ours, theirs) for theirs in masks]
            chosen += [row.index(max(row)) for row in zip(*ious, strict=True)]
    places = torch.arange(len(chosen)), torch.tensor(chosen, dtype=torch.int64)
    return replace(first, low=candidates[places])


def _iou(ours: Tensor, theirs: Tensor) -> list[float]:
    """IoUs of (P, H, W) bool masks pair by pair."""
    counts = (masks.flatten(1).sum(1).tolist() for masks in (ours & theirs, ours | theirs))
    return [shared / max(1, union) for shared, union in zip(*counts, strict=True)]
