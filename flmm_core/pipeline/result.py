"""What `Grounder.ground` gives: masks, scores, boxes, a picture of them, COCO records."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image, ImageChops, ImageFilter
from pycocotools import mask as coco_mask
from torch import Tensor

from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.types import Grounding

TINT = 110
"""Opacity of a mask in the overlay, of 255."""


@dataclass(frozen=True)
class Result:
    """Masks of P phrases in one picture, on the CPU.

    Attributes:
        image: The picture.
        phrases: What was looked for.
        logits: (P, H, W) float32 at the picture's size.
        coarse_logits: (P, h, w) float32, the mask head's, covering exactly the picture.
        masks: (P, H, W) bool, `logits > 0`.
        scores: (P,) float32, mean probability over the mask's pixels; 0 for an empty mask.
        boxes: (P, 4) int64 (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros if empty.
    """

    image: Image.Image
    phrases: tuple[str, ...]
    logits: Tensor
    coarse_logits: Tensor
    masks: Tensor
    scores: Tensor
    boxes: Tensor

    def __len__(self) -> int:
        return len(self.phrases)

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """The overlay's colour of each phrase, (red, green, blue) in 0..255."""
        return tuple(_colour(number) for number in range(len(self)))

    def overlay(self) -> Image.Image:
        """The picture (RGB) with every mask tinted and outlined in its colour of `colours`."""
        picture = self.image.convert("RGB")
        for mask, colour in zip(self.masks, self.colours, strict=True):
            stencil = Image.fromarray(mask.numpy()).convert("L")
            inside = stencil.filter(ImageFilter.MinFilter(3))
            picture.paste(colour, mask=stencil.point([0] * 255 + [TINT]))
            picture.paste(colour, mask=ImageChops.difference(stencil, inside))
        return picture

    def to_coco(self) -> list[dict[str, Any]]:
        """One record a phrase, as JSON takes it.

        Keys: `phrase`, `segmentation` (compressed RLE), `bbox` (x, y, width, height in pixels),
        `area` in pixels, `score`.
        """
        records = []
        for index, phrase in enumerate(self.phrases):
            encoded = coco_mask.encode(self.masks[index].numpy().astype("uint8", order="F"))
            x0, y0, x1, y1 = self.boxes[index].tolist()
            records.append(
                {
                    "phrase": phrase,
                    "segmentation": {
                        "size": [int(side) for side in encoded["size"]],
                        "counts": encoded["counts"].decode("ascii"),
                    },
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": int(coco_mask.area(encoded)),
                    "score": float(self.scores[index]),
                }
            )
        return records


class ResultBuilder:
    """Collects groundings into one `Result`, holding the full-size logits once.

    Args:
        image: The picture.
        phrases: All phrases, in the order in which their groundings will come.
    """

    def __init__(self, image: Image.Image, phrases: Sequence[str]) -> None:
        self._image = image
        self._phrases = tuple(phrases)
        self._logits = torch.empty(len(self._phrases), image.height, image.width)
        self._coarse: list[Tensor] = []
        self._filled = 0

    def add(self, grounding: Grounding) -> None:
        """Take the next phrases' masks."""
        end = self._filled + len(grounding.logits)
        self._logits[self._filled : end] = grounding.logits
        self._coarse.append(grounding.coarse_logits.float().cpu())
        self._filled = end

    def build(self) -> Result:
        """The result of all phrases."""
        if self._filled != len(self._phrases):
            raise ValueError(f"{self._filled} masks for {len(self._phrases)} phrases")
        masks = self._logits > 0
        scores = [_score(*pair) for pair in zip(self._logits, masks, strict=True)]
        return Result(
            image=self._image,
            phrases=self._phrases,
            logits=self._logits,
            coarse_logits=torch.cat(self._coarse) if self._coarse else torch.zeros(0, 1, 1),
            masks=masks,
            scores=torch.tensor(scores),
            boxes=tight_boxes(masks),
        )


def _score(logits: Tensor, mask: Tensor) -> float:
    inside = logits[mask]
    return float(inside.sigmoid().mean()) if len(inside) else 0.0


def _colour(number: int) -> tuple[int, int, int]:
    """Hues a golden ratio apart: neighbours differ, and no two are the same."""
    hue = number * 0.618034 % 1.0
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1.0))
    return red, green, blue
