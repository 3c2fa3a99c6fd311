"""Refiners that prompt a frozen segmenter with coarse masks: what SAM and SAM 2 have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.mask_logits import Canvas, MaskLogits, above, portions
from flmm_core.pipeline.refiners import PromptOptions
from flmm_core.pipeline.refiners.base import Refiner
from flmm_core.pipeline.types import EncodedImage

DECODE_CHUNK = 32
"""Most masks per call of the mask decoder."""

DECODE_CPU_BYTES = 8 << 20
"""Most bytes of dense prompts per call on a CPU; beyond its caches, decoding is half as fast."""


class PromptedRefiner(Refiner):
    """Prompts a mask decoder with each coarse mask, its bounding box and its phrase's text prompts.

    Args:
        image_size: S, the side of the encoder's square in pixels.
        grid: g, cells per side of the embedding.
        width: E, of embedding and prompts.
        mask: Prompt with the coarse logits; `box` and `text` are the other prompts.
        multimask: Predict three candidates and keep the one with the highest IoU with the coarse
            mask, both at the image's size, as the original F-LMM does.
    """

    def __init__(
        self,
        image_size: int,
        grid: int,
        width: int,
        *,
        mask: bool = True,
        box: bool = True,
        text: bool = True,
        multimask: bool = False,
    ) -> None:
        super().__init__()
        self.image_size, self.grid, self.prompt_width = image_size, grid, width
        self.mask, self.box, self.uses_text = mask, box, text
        self.multimask = multimask

    @classmethod
    def reads_text(cls, options: PromptOptions) -> bool:
        return options.text

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
        kinds = zip(*(image.tensors for image in encoded), strict=True)
        embeddings, *details = (torch.stack([x.to(device).float() for x in kind]) for kind in kinds)
        if len(counts) > 1:
            repeats = torch.tensor(counts, device=device)
            embeddings = embeddings.repeat_interleave(repeats, dim=0)  # (N, E, g, g), N masks
            details = [kind.repeat_interleave(repeats, dim=0) for kind in details]
        candidates = self._decode(embeddings, torch.cat(masks), torch.cat(boxes), texts, details)
        return tuple(
            _best(part, MaskLogits(part[:, 0], hw, self._canvas(input_hw)), logits)
            for part, logits, hw, input_hw in zip(
                torch.split(candidates, counts), coarse, image_hw, inputs_hw, strict=True
            )
        )

    @abstractmethod
    def _mask_prompts(self, coarse: Tensor, input_hw: tuple[int, int]) -> Tensor:
        """(P, h, w) coarse logits -> (P, 1, 4g, 4g) on the encoder's square."""

    @abstractmethod
    def _canvas(self, input_hw: tuple[int, int]) -> Canvas | None:
        """What the decoded masks of an image cover; None if exactly the image."""

    @torch.no_grad()
    def _box_prompts(
        self, coarse: Tensor, input_hw: tuple[int, int], image_hw: tuple[int, int]
    ) -> Tensor:
        """(P, 4) (x0, y0, x1, y1) in pixels of the square; the whole image for an empty mask."""
        found = [tight_boxes(mask) for _, mask in _enlarged(coarse, image_hw)]
        boxes = torch.cat([*found, torch.zeros(0, 4).to(coarse)]).to(coarse)
        (input_h, input_w), (h, w) = input_hw, image_hw
        empty = boxes[:, 2:].amax(dim=1, keepdim=True) == 0
        boxes = torch.where(empty, boxes.new_tensor([0.0, 0.0, w, h]), boxes)
        return boxes * boxes.new_tensor([input_w / w, input_h / h, input_w / w, input_h / h])

    def _decode(
        self,
        embeddings: Tensor,
        masks: Tensor,
        boxes: Tensor,
        texts: Sequence[Tensor] | None,
        details: Sequence[Tensor] = (),
    ) -> Tensor:
        """Candidates (N, K, 4g, 4g) of N masks; K = 3 with `multimask`, else 1.

        Phrases of different lengths are decoded together; padding has no weight.

        Args:
            embeddings: (N, E, g, g), or (1, E, g, g) if all masks are of one image.
            masks: (N, 1, 4g, 4g); `boxes` is (N, 4).
            texts: Per mask, (T_p, E).
            details: Those of the images: (N, e, k·g, k·g) each, or (1, e, k·g, k·g).
        """
        with torch.autocast(masks.device.type, enabled=False):  # coordinates must not be rounded
            sparse, dense, position = self._embed_prompts(masks, boxes)
        sparse = sparse.expand(len(masks), -1, -1)
        # The decoder adds the dense prompt to the embedding of its one image. With the sum as the
        # prompt, one call decodes masks of different images and repeats no embedding.
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
            finer = [kind if len(kind) == 1 else kind[chunk] for kind in details]
            mine = None if real is None else real[chunk]
            decoded.append(self._decode_chunk(dense[chunk], position, tokens[chunk], mine, finer))
        return torch.cat(decoded).float()

    @abstractmethod
    def _embed_prompts(self, masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sparse prompts (N or 1, k, E), dense ones (N or 1, E, g, g), positions (1, E, g, g)."""

    @abstractmethod
    def _decode_chunk(
        self,
        dense: Tensor,
        position: Tensor,
        tokens: Tensor,
        real: Tensor | None,
        details: Sequence[Tensor],
    ) -> Tensor:
        """Candidates (n, K, 4g, 4g) of n masks.

        Args:
            dense: (n, E, g, g), the embedding and the dense prompt; `position` is (1, E, g, g).
            tokens: (n, k, E); `real` is false at padding, None if there is none.
            details: As in `_decode`.
        """


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
