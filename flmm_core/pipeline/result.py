"""What `Grounder.ground` gives: masks, scores, boxes, an image of them, COCO records."""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageChops, ImageFilter
from pycocotools import mask as coco_mask
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.types import Grounding

TINT = 110
"""Opacity of a mask in the overlay, of 255."""


@dataclass(frozen=True)
class Result:
    """Masks of P phrases in one image, on the CPU.

    Attributes:
        image: The image.
        phrases: What was looked for.
        logits: (P, H, W) float32 at the image's size.
        coarse_logits: (P, h, w) float32, the mask head's, covering exactly the image.
        masks: (P, H, W) bool, `logits > 0`; without a pixel where the phrase is not there.
        scores: (P,) float32, mean probability over the mask's pixels; 0 for an empty mask.
        boxes: (P, 4) int64 (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros if empty.
        probabilities: (P,) float32, calibrated: how likely each mask is right (IoU >= 0.5); nan
            from a head that was trained without validation data.
        there: (P,) bool, whether the phrase was not answered with "not there" (`abstain`).
    """

    image: Image.Image
    phrases: tuple[str, ...]
    logits: Tensor
    coarse_logits: Tensor
    masks: Tensor
    scores: Tensor
    boxes: Tensor
    probabilities: Tensor
    there: Tensor

    def __len__(self) -> int:
        return len(self.phrases)

    @property
    def colours(self) -> tuple[tuple[int, int, int], ...]:
        """The overlay's colour of each phrase, (red, green, blue) in 0..255."""
        return tuple(_colour(number) for number in range(len(self)))

    def abstain(self, below: float) -> Result:
        """The same with "not there" for every phrase whose probability is below a threshold.

        Such a phrase keeps its logits, its score and its probability; its mask becomes empty.

        Raises:
            UsageError: There are no probabilities.
        """
        if self.probabilities.isnan().any():
            raise UsageError(
                "The head gives no probabilities, so it cannot say that a thing is not there.",
                found="It was trained without validation data.",
                repair="Train it with --val-data.",
            )
        there = self.there & (self.probabilities >= below)
        return replace(
            self,
            there=there,
            masks=self.masks & there[:, None, None],
            boxes=self.boxes * there[:, None],
        )

    def overlay(self) -> Image.Image:
        """The image (RGB) with every mask tinted and outlined in its colour of `colours`."""
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
        `area` in pixels, `score`, `probability` (null if unknown), `there`.
        """
        records = []
        for index, phrase in enumerate(self.phrases):
            encoded = coco_mask.encode(self.masks[index].numpy().astype("uint8", order="F"))
            x0, y0, x1, y1 = self.boxes[index].tolist()
            probability = float(self.probabilities[index])
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
                    "probability": None if math.isnan(probability) else probability,
                    "there": bool(self.there[index]),
                }
            )
        return records


class ResultBuilder:
    """Collects groundings into one `Result`, holding the full-size logits once.

    Args:
        image: The image.
        phrases: All phrases, in the order in which their groundings will come.
        confidence: Evidence for masks to probabilities, (P,) both; None if there is none.
    """

    def __init__(
        self,
        image: Image.Image,
        phrases: Sequence[str],
        confidence: Callable[[Any], Any] | None = None,
    ) -> None:
        self._image = image
        self._phrases = tuple(phrases)
        self._logits = torch.empty(len(self._phrases), image.height, image.width)
        self._coarse: list[Tensor] = []
        self._confidence = confidence
        self._probabilities = torch.full((len(self._phrases),), torch.nan)
        self._filled = 0

    def add(self, grounding: Grounding) -> None:
        """Take the next phrases' masks."""
        end = self._filled + len(grounding.logits)
        self._logits[self._filled : end] = grounding.logits
        self._coarse.append(grounding.coarse_logits.float().cpu())
        if self._confidence is not None:
            likely = self._confidence(grounding.evidence.cpu().numpy())
            self._probabilities[self._filled : end] = torch.as_tensor(likely)
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
            probabilities=self._probabilities,
            there=torch.ones(len(self._phrases), dtype=torch.bool),
        )


def _score(logits: Tensor, mask: Tensor) -> float:
    inside = logits[mask]
    return float(inside.sigmoid().mean()) if len(inside) else 0.0


def _colour(number: int) -> tuple[int, int, int]:
    """Hues a golden ratio apart: neighbours differ, and no two are the same."""
    hue = number * 0.618034 % 1.0
    red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.85, 1.0))
    return red, green, blue
