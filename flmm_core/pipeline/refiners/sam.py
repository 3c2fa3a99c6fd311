"""Stage 4: image + coarse logits + text prompts -> logits at the image's size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.pipeline.boxes import enlarged_boxes
from flmm_core.pipeline.refiners.sam_attention import fuse, padded_prompts
from flmm_core.pipeline.refiners.sam_model import SamParts
from flmm_core.pipeline.types import EncodedImage

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder, PromptEncoder

ENCODED_PIXELS = 1024 * 1024
"""The image encoder sees at most this many pixels at a time (at least one image)."""

DECODE_CHUNK = 32
"""Most masks that one call of the mask decoder sees."""

DECODE_CPU_BYTES = 8 << 20
"""On a CPU a call sees as many masks as fill so much with a number for each of their cells and
channels: two with the official sizes. What outgrows the processor's caches takes twice the time."""


class NoRefiner(nn.Module):
    """Enlarges the coarse logits to the image; same calls as `SamRefiner`."""

    uses_text = False

    def prepare(self, image: Image.Image) -> Tensor | None:
        """Nothing of the image is needed."""
        return None

    def read(self, pictures: Sequence[Tensor | EncodedImage | None]) -> tuple[None, ...]:
        """Nothing of the images is needed."""
        return (None,) * len(pictures)

    def forward(
        self,
        pictures: Sequence[Tensor | EncodedImage | None],
        coarse: Sequence[Tensor],
        prompts: Sequence[Sequence[Tensor]],
        image_hw: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, ...]:
        """Logits per sample, (P, H, W)."""
        return tuple(_resize(logits, hw) for logits, hw in zip(coarse, image_hw, strict=True))


class SamRefiner(nn.Module):
    """Prompts SAM with each coarse mask, its box and the words of its phrase.

    The image encoder is frozen; prompt encoder and mask decoder are trained.

    Args:
        sam: The parts of a SAM.
        use_mask: Prompt with the coarse logits.
        use_box: Prompt with the tight box around the coarse mask.
        use_text: Prompt with the text tokens.
        half: Encode images in bfloat16; decoding stays in float32.
        multimask: Let SAM offer three candidates and take the one with the highest IoU against
            the coarse mask.
        paper_rounding: Pad mask prompts by the smallest logit of all masks of a sample, as the
            original F-LMM does (a mask then depends on its companions), not by each mask's own.
    """

    def __init__(
        self,
        sam: SamParts,
        *,
        use_mask: bool = True,
        use_box: bool = True,
        use_text: bool = True,
        multimask: bool = False,
        half: bool = False,
        paper_rounding: bool = False,
    ) -> None:
        super().__init__()
        if not (use_mask or use_box or use_text):
            raise ValueError("SAM needs at least one kind of prompt: mask, box or text")
        self.sam_name = sam.name
        self.image_size = sam.image_size
        self.grid = sam.shape.grid
        self.prompt_width = sam.shape.out_chans
        self.use_mask = use_mask
        self.use_box = use_box
        self.uses_text = use_text
        self.multimask = multimask
        self.half_precision = half
        self.paper_rounding = paper_rounding
        self.image_encoder = sam.image_encoder.requires_grad_(False).eval()
        self.prompt_encoder: PromptEncoder = sam.prompt_encoder.requires_grad_(True)
        self.mask_decoder: MaskDecoder = sam.mask_decoder.requires_grad_(True)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor
        mean, std = torch.tensor(sam.pixel_mean), torch.tensor(sam.pixel_std)
        self.register_buffer("pixel_mean", mean.view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", std.view(3, 1, 1), persistent=False)
        for part in (self.image_encoder, self.mask_decoder):
            fuse(part)
        self._freeze_unused()

    def _freeze_unused(self) -> None:
        """Freeze what no forward of ours reaches: training on several devices would wait for it."""
        encoder = self.prompt_encoder
        points = list(encoder.point_embeddings)
        unused: list[nn.Module] = [*points[:2], encoder.not_a_point_embed]
        unused += [] if self.use_box else points[2:]
        unused += [encoder.no_mask_embed if self.use_mask else encoder.mask_downscaling]
        for module in (*unused, self.mask_decoder.iou_prediction_head):
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> SamRefiner:
        """As usual, but the frozen image encoder stays in evaluation mode."""
        super().train(mode)
        self.image_encoder.eval()
        return self

    def prepare(self, image: Image.Image) -> Tensor:
        """(3, h, w) uint8 on the CPU, the longest side `image_size` pixels, as SAM expects it."""
        scale = self.image_size / max(image.size)
        w, h = (max(1, int(side * scale + 0.5)) for side in image.size)
        resized = image.convert("RGB").resize((w, h), Image.Resampling.BILINEAR)
        return torch.from_numpy(np.array(resized)).permute(2, 0, 1).contiguous()

    @torch.no_grad()
    def encode(self, pictures: Sequence[Tensor]) -> Tensor:
        """Embeddings (B, E, g, g) of prepared images.

        The same tensor given twice is encoded once, so several phrases of one image are cheap.
        """
        distinct = {id(picture): picture for picture in pictures}
        squares = torch.stack([self._square(picture) for picture in distinct.values()])
        at_a_time = max(1, ENCODED_PIXELS // self.image_size**2)
        with torch.autocast(squares.device.type, torch.bfloat16, enabled=self.half_precision):
            parts = [self.image_encoder(part) for part in torch.split(squares, at_a_time)]
        embeddings = torch.cat(parts).float()
        place = {key: row for row, key in enumerate(distinct)}
        return embeddings[[place[id(picture)] for picture in pictures]]  # (B, E, g, g)

    def read(self, pictures: Sequence[Tensor | EncodedImage]) -> tuple[EncodedImage, ...]:
        """The frozen half: prepared images are encoded, encoded ones stay as they are."""
        prepared = [picture for picture in pictures if isinstance(picture, Tensor)]
        fresh = iter(self.encode(prepared) if prepared else ())
        return tuple(
            EncodedImage(next(fresh), _hw(picture)) if isinstance(picture, Tensor) else picture
            for picture in pictures
        )

    def _square(self, picture: Tensor) -> Tensor:
        """(3, h, w) uint8 -> (3, S, S) normalised, zeros right and below."""
        pixels = (picture.to(self.pixel_mean.device).float() - self.pixel_mean) / self.pixel_std
        h, w = pixels.shape[-2:]
        return F.pad(pixels, (0, self.image_size - w, 0, self.image_size - h))

    def forward(
        self,
        pictures: Sequence[Tensor | EncodedImage],
        coarse: Sequence[Tensor],
        prompts: Sequence[Sequence[Tensor]],
        image_hw: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, ...]:
        """Refine all masks of a batch together.

        Args:
            images: Per sample, what `prepare` or `read` gave.
            coarse: Per sample, (P, h, w) logits covering exactly the image.
            prompts: Per sample and phrase, (T_p, E) text tokens; not read without `use_text`.
            image_hw: Per sample, height and width of the image in pixels.

        Returns:
            Per sample, (P, H, W) logits at the image's size.
        """
        counts = [len(logits) for logits in coarse]
        if not sum(counts):
            return tuple(_resize(x, hw) for x, hw in zip(coarse, image_hw, strict=True))
        encoded = self.read(pictures)
        inputs_hw = [picture.input_hw for picture in encoded]
        masks = [self._mask_prompts(x, hw) for x, hw in zip(coarse, inputs_hw, strict=True)]
        boxes = [
            self._box_prompts(x, input_hw, hw)
            for x, input_hw, hw in zip(coarse, inputs_hw, image_hw, strict=True)
        ]
        texts = [text for sample in prompts for text in sample] if self.uses_text else None
        device = self.pixel_mean.device
        embeddings = torch.stack([each.embedding.to(device).float() for each in encoded])
        if len(counts) > 1:
            repeats = torch.tensor(counts, device=device)
            embeddings = embeddings.repeat_interleave(repeats, dim=0)  # (N, E, g, g), N masks
        candidates = self._decode(embeddings, torch.cat(masks), torch.cat(boxes), texts)
        per_sample = zip(torch.split(candidates, counts), masks, inputs_hw, strict=True)
        chosen = [_best(part, mask, hw, self.image_size) for part, mask, hw in per_sample]
        return tuple(
            self._to_image(low_res, input_hw, hw)
            for low_res, input_hw, hw in zip(chosen, inputs_hw, image_hw, strict=True)
        )

    def _mask_prompts(self, coarse: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """(P, h, w) coarse logits -> (P, 1, 4g, 4g) on SAM's square, padded as surely outside."""
        size, (h, w) = self.image_size, input_hw
        if not len(coarse):
            return coarse.new_zeros(0, 1, 4 * self.grid, 4 * self.grid)
        lowest = coarse.detach().amin(dim=(1, 2), keepdim=True)
        if self.paper_rounding:
            lowest = lowest.amin(dim=0, keepdim=True)
        square = lowest.clamp(max=-1).expand(len(coarse), size, size).clone()
        square[:, :h, :w] = _resize(coarse, input_hw)
        return _resize(square, (4 * self.grid, 4 * self.grid))[:, None]

    @torch.no_grad()
    def _box_prompts(
        self, coarse: Tensor, input_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> Tensor:
        """(P, 4) (x0, y0, x1, y1) in SAM's pixels; an empty mask gets the whole image."""
        boxes = enlarged_boxes(coarse.sigmoid(), image_hw, 0.5).to(coarse)
        (input_h, input_w), (h, w) = input_hw, image_hw
        empty = boxes[:, 2:].amax(dim=1, keepdim=True) == 0
        boxes = torch.where(empty, boxes.new_tensor([0.0, 0.0, w, h]), boxes)
        return boxes * boxes.new_tensor([input_w / w, input_h / h, input_w / w, input_h / h])

    def _decode(
        self, embeddings: Tensor, masks: Tensor, boxes: Tensor, texts: Sequence[Tensor] | None
    ) -> Tensor:
        """Candidates (N, K, 4g, 4g) for N masks, K = 3 with `multimask` and 1 without.

        Embeddings are (N, E, g, g), or (1, E, g, g) where all masks are of one image.

        Phrases of different lengths are decoded together: what pads a shorter one has no weight.
        """
        with torch.autocast(masks.device.type, enabled=False):  # places must not be rounded
            sparse, dense = self.prompt_encoder(
                points=None,
                boxes=boxes if self.use_box else None,
                masks=masks if self.use_mask else None,
            )  # (N or 1, 0 or 2, E), (N or 1, E, g, g)
            position = self.prompt_encoder.get_dense_pe()
        sparse = sparse.expand(len(masks), -1, -1)
        # SAM adds the dense prompt to the one image's embedding. Given the sum as the prompt,
        # one call decodes masks of different images, and no embedding is repeated.
        dense = dense + embeddings
        if len(dense) != len(masks):  # neither has a mask of its own
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
        return torch.cat(decoded)

    def _to_image(
        self, low_res: Tensor, input_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> Tensor:
        """(P, 4g, 4g) on SAM's square -> (P, H, W) float32, as segment-anything does it."""
        square = _resize(low_res.float(), (self.image_size, self.image_size))
        return _resize(square[:, : input_hw[0], : input_hw[1]], image_hw)


def _join_prompts(sparse: Tensor, texts: Sequence[Tensor] | None) -> tuple[Tensor, Tensor | None]:
    """Tokens (N, K, E) of each mask's prompt, and (N, K) bool which are real, None if all are.

    Args:
        sparse: (N, k, E), which every mask has.
        texts: Per mask, (T_p, E), which follow.
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


def _best(candidates: Tensor, prompt: Tensor, input_hw: tuple[int, int], side: int) -> Tensor:
    """Of each mask's candidates, the one with the highest IoU against the coarse mask.

    Args:
        candidates: (P, K, 4g, 4g) logits.
        prompt: (P, 1, 4g, 4g) coarse logits.
        input_hw: Part of SAM's square, in its pixels, that the image fills.
        side: Side of SAM's square in pixels.

    Returns:
        (P, 4g, 4g).
    """
    if candidates.shape[1] == 1:
        return candidates[:, 0]
    cells = candidates.shape[-1]
    h, w = (-(-extent * cells // side) for extent in input_hw)
    ours, theirs = prompt[..., :h, :w] > 0, candidates[..., :h, :w] > 0
    union = (ours | theirs).sum(dim=(2, 3))
    iou = (ours & theirs).sum(dim=(2, 3)) / union.clamp(min=1)  # (P, K)
    return candidates[torch.arange(len(candidates), device=iou.device), iou.argmax(dim=1)]


def _resize(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(P, h, w) -> (P, *size), bilinear, cell edges aligned."""
    return F.interpolate(logits[:, None], size, mode="bilinear", align_corners=False)[:, 0]


def _hw(picture: Tensor) -> tuple[int, int]:
    return picture.shape[-2], picture.shape[-1]
