"""What `Grounder.ground` gives: masks, scores, boxes, an image of them, COCO records."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.painting import LegendEntry, add_legend, mask_color, paint_mask
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.types import Grounding


@dataclass(frozen=True)
class Result:
    """Masks of P phrases in one image, on the CPU.

    Attributes:
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

    def overlay(self, *, legend: bool = True) -> Image.Image:
        """The image (RGB) with every mask filled and outlined in a color of its own.

        `legend` adds the numbered phrases with their scores below the image.
        """
        image, entries = self.image.convert("RGB"), []
        for number, (phrase, mask) in enumerate(zip(self.phrases, self.masks, strict=True)):
            color, place = mask_color(number), None
            image = paint_mask(image, mask.numpy(), color)
            said = "nothing found" if self.there[number] else "not there"
            if mask.any():
                said = f"{float(self.scores[number]):.2f}"
                top = int(self.boxes[number, 1])
                place = int(mask[top].nonzero().median()), top
            entries.append(LegendEntry(color, phrase, said, place))
        return add_legend(image, entries) if legend else image

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


def collect(
    image: Image.Image,
    phrases: Sequence[str],
    groundings: Iterable[Grounding],
    confidence: Callable[[Any], Any] | None = None,
) -> Result:
    """One `Result` of all groundings in the order of their phrases; full-size logits once.

    Args:
        image: The image.
        phrases: Those of all groundings.
        groundings: May be made while they are collected.
        confidence: Evidence for masks to probabilities, (P,) both; None if there is none.
    """
    logits = torch.empty(len(phrases), image.height, image.width)
    probabilities = torch.full((len(phrases),), torch.nan)
    coarse = []
    end = 0
    for grounding in groundings:
        start, end = end, end + len(grounding.logits)
        logits[start:end] = grounding.logits
        coarse.append(grounding.coarse_logits.float().cpu())
        if confidence is not None:
            likely = confidence(grounding.evidence.cpu().numpy())
            probabilities[start:end] = torch.as_tensor(likely)
    if end != len(phrases):
        raise ValueError(f"{end} masks for {len(phrases)} phrases")
    masks = logits > 0
    scores = [
        float(each[mask].sigmoid().mean()) if mask.any() else 0.0
        for each, mask in zip(logits, masks, strict=True)
    ]
    return Result(
        image=image,
        phrases=tuple(phrases),
        logits=logits,
        coarse_logits=torch.cat(coarse) if coarse else torch.zeros(0, 1, 1),
        masks=masks,
        scores=torch.tensor(scores),
        boxes=tight_boxes(masks),
        probabilities=probabilities,
        there=torch.ones(len(phrases), dtype=torch.bool),
    )
