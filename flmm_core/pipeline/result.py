"""What `Grounder.ground` gives: masks, scores, boxes, an image of them, COCO records."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.painting import (
    OPACITY,
    TOLD_APART,
    LegendEntry,
    add_legend,
    add_numbers,
    mask_color,
    paint_onto,
)
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.finite import check_masks
from flmm_core.pipeline.mask_logits import MaskLogits, judge
from flmm_core.pipeline.resample import WHOLE_IMAGE, resample
from flmm_core.pipeline.result_files import html_of, write_result
from flmm_core.pipeline.types import AttentionMaps, Grounding


@dataclass(frozen=True, eq=False, repr=False)
class Found:
    """One phrase of a result: its `number`th."""

    result: Result
    number: int

    @property
    def phrase(self) -> str:
        """The words."""
        return self.result.phrases[self.number]

    @property
    def mask(self) -> Tensor:
        """(H, W) bool; empty if the phrase is not there."""
        return self.result.mask(self.number)

    @property
    def score(self) -> float:
        """Mean probability over the mask's pixels; 0 for an empty mask."""
        return float(self.result.scores[self.number])

    @property
    def probability(self) -> float | None:
        """How likely the mask is right; None from a head that does not tell."""
        value = float(self.result.probabilities[self.number])
        return None if math.isnan(value) else value

    @property
    def there(self) -> bool:
        """Whether the phrase was not answered with "not there"."""
        return bool(self.result.there[self.number])

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros for an empty mask."""
        x0, y0, x1, y1 = self.result.boxes[self.number].tolist()
        return x0, y0, x1, y1

    def attention(self) -> Tensor:
        """(H, W) float32 that sum to 1: where the words look, the mean of all layers and heads."""
        return self.result.attention(self.number)

    def to_record(self) -> dict[str, Any]:
        """As in `Result.to_coco`."""
        return self.result.to_coco()[self.number]

    def to_row(self) -> dict[str, Any]:
        """Plain numbers and words, as a row of a table: no mask, the box in columns of its own."""
        record = self.to_record()
        del record["segmentation"]
        x0, y0, x1, y1 = self.box
        record.pop("bbox")
        return {**record, "x0": x0, "y0": y0, "x1": x1, "y1": y1}

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({self.phrase!r}, score={self.score:.2f}, box={self.box}"
            f"{'' if self.there else ', not there'})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class Result(Sequence[Found]):
    """Masks of P phrases in one image, on the CPU.

    Masks are kept as run lengths and logits at the resolution that they were decided at, so that
    many masks of a large photo fit into memory. `masks` and `logits` are made at the first access
    and kept; `mask` makes one.

    Attributes:
        image: RGB, upright.
        refined: The refined masks' logits.
        coarse_logits: (P, h, w) float32, the mask head's, covering exactly the image.
        segmentations: COCO's compressed run-length code of each mask.
        scores: (P,) float32, mean probability over the mask's pixels; 0 for an empty mask.
        boxes: (P, 4) int64 (x0, y0, x1, y1) in pixels, x1 and y1 exclusive; zeros if empty.
        probabilities: (P,) float32, calibrated: how likely each mask is right (IoU >= 0.5); nan
            from a head that was trained without validation data.
        there: (P,) bool, whether the phrase was not answered with "not there" (`abstain`); the
            mask of such a phrase is empty.
        heat: (P, 1, h, w), the mean of the attention maps over all layers and heads.
    """

    image: Image.Image
    phrases: tuple[str, ...]
    refined: MaskLogits
    coarse_logits: Tensor
    segmentations: tuple[dict[str, Any], ...]
    scores: Tensor
    boxes: Tensor
    probabilities: Tensor
    there: Tensor
    heat: AttentionMaps

    @cached_property
    def logits(self) -> Tensor:
        """(P, H, W) float32 at the image's size."""
        return self.refined.full()

    @cached_property
    def masks(self) -> Tensor:
        """(P, H, W) bool, `logits > 0` (but for rounding); empty where the phrase is not there."""
        masks = torch.empty(len(self), *self.refined.image_hw, dtype=torch.bool)
        for number in range(len(self)):
            masks[number] = self.mask(number)
        return masks

    def mask(self, number: int) -> Tensor:
        """(H, W) bool, one of `masks`, made anew."""
        decoded = coco_mask.decode(self.segmentations[number])
        return torch.from_numpy(np.ascontiguousarray(decoded).view(np.bool_))  # zeros and ones

    def __len__(self) -> int:
        return len(self.phrases)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[place] for place in range(len(self))[number]]
        return Found(self, range(len(self))[number])

    def __repr__(self) -> str:
        height, width = self.refined.image_hw
        return f"Result({width} x {height}, {list(self)})"

    def _repr_html_(self) -> str:
        return html_of([self])

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write overlay.png, mask-1.png, ... and result.json into a folder, as `flmm ground`."""
        write_result(self, Path(folder))
        return Path(folder)

    def to_records(self) -> list[dict[str, Any]]:
        """One flat row a phrase, for `pandas.DataFrame`: see `Found.to_row`."""
        return [found.to_row() for found in self]

    def attention(self, number: int) -> Tensor:
        """(H, W) float32 that sum to 1: where a phrase's words look, the mean of all heads.

        `flmm_core.explain` has single layers and heads.
        """
        maps = self.heat.maps[number : number + 1]  # (1, 1, h, w)
        height, width = self.refined.image_hw
        shown = resample(maps, self.heat.image_box, WHOLE_IMAGE, (height, width))[0, 0]
        return shown / shown.sum().clamp(min=1e-12)

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
        nothing = _encode(torch.zeros(self.refined.image_hw, dtype=torch.bool))
        kept = zip(self.segmentations, there.tolist(), strict=True)
        return replace(
            self,
            there=there,
            segmentations=tuple(mask if seen else nothing for mask, seen in kept),
            boxes=self.boxes * there[:, None],
        )

    def overlay(
        self, *, legend: bool = True, opacity: float = OPACITY, painted: Image.Image | None = None
    ) -> Image.Image:
        """The image (RGB) with every mask filled and outlined in a color of its own.

        `legend` adds the numbered phrases with their scores below the image; `opacity` is that of
        the fill, in [0, 1]. `painted` is the image after `paint`, if that is done already.
        """
        scores = [
            f"{score:.2f}" if area else "nothing found"
            for score, area in zip(self.scores.tolist(), self._areas(), strict=True)
        ]
        said = [
            score if there else "not there"
            for score, there in zip(scores, self.there.tolist(), strict=True)
        ]
        colors = [mask_color(number) for number in range(len(self))]
        entries = [LegendEntry(*entry) for entry in zip(colors, self.phrases, said, strict=True)]
        # Painted last: a large photo is copied once.
        sheet = add_legend(painted or self.image, entries if legend else ())
        if painted is None:
            self.paint(sheet, opacity=opacity)
        if legend:
            marks = {}
            for number, area in enumerate(self._areas()):
                if area and len(self) > TOLD_APART:
                    top = int(self.boxes[number, 1])
                    row = self.mask(number)[top].nonzero()
                    marks[number + 1] = mask_color(number), int(row.median()), top
            add_numbers(sheet, self.image.size, marks)
        return sheet

    def paint(self, sheet: Image.Image, *, since: int = 0, opacity: float = OPACITY) -> None:
        """Paint the masks from number `since` on into the upper left of an RGB image."""
        for number, area in enumerate(self._areas()):
            if area and number >= since:
                mask, color = self.mask(number).numpy(), mask_color(number)
                paint_onto(sheet, mask, color, opacity, size=self.image.size)

    def _areas(self) -> list[int]:
        """Pixels of each mask."""
        return [int(coco_mask.area(code)) for code in self.segmentations]

    def to_coco(self) -> list[dict[str, Any]]:
        """One record a phrase, as JSON takes it.

        Keys: `phrase`, `segmentation` (compressed RLE), `bbox` (x, y, width, height in pixels),
        `area` in pixels, `score`, `probability` (null if unknown), `there`.
        """
        records = []
        for index, phrase in enumerate(self.phrases):
            encoded = self.segmentations[index]
            x0, y0, x1, y1 = self.boxes[index].tolist()
            probability = float(self.probabilities[index])
            records.append(
                {
                    "phrase": phrase,
                    "segmentation": {
                        "size": encoded["size"],
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
    """One `Result` of all groundings in the order of their phrases.

    Args:
        image: The image.
        phrases: Those of all groundings.
        groundings: May be made while they are collected.
        confidence: Evidence for masks to probabilities, (P,) both; None if there is none.

    Raises:
        RunError: Logits are not finite.
    """
    refined: list[MaskLogits] = []
    coarse, scores, boxes, probabilities = [], [], [], []
    heat: list[Tensor] = []
    frame = WHOLE_IMAGE
    segmentations: list[dict[str, Any]] = []
    for grounding in groundings:
        check_masks(grounding)
        refined.append(grounding.refined.cpu())
        coarse.append(grounding.coarse_logits.float().cpu())
        heat.append(grounding.maps.maps.mean(1, keepdim=True).float().cpu())
        frame = grounding.maps.image_box
        for part in grounding.refined.portions():
            sure, evidence = judge(grounding.coarse_logits[part], grounding.refined[part])
            masks = grounding.refined[part].masks().cpu()
            scores.append(sure)
            boxes.append(tight_boxes(masks))
            segmentations += map(_encode, masks)
            if confidence is None:
                probabilities.append(torch.full_like(evidence, torch.nan))
            else:
                likely = torch.as_tensor(confidence(grounding.weigh(evidence, part).numpy()))
                probabilities.append(likely.to(torch.float32))
    if len(segmentations) != len(phrases):
        raise ValueError(f"{len(segmentations)} masks for {len(phrases)} phrases")
    none = MaskLogits(torch.zeros(0, 1, 1), (image.height, image.width))
    return Result(
        image=image,
        phrases=tuple(phrases),
        refined=MaskLogits.cat(refined or [none]),
        coarse_logits=torch.cat(coarse) if coarse else torch.zeros(0, 1, 1),
        segmentations=tuple(segmentations),
        scores=torch.cat([torch.zeros(0), *scores]),
        boxes=torch.cat([torch.zeros(0, 4, dtype=torch.int64), *boxes]),
        probabilities=torch.cat([torch.zeros(0), *probabilities]),
        there=torch.ones(len(phrases), dtype=torch.bool),
        heat=AttentionMaps(torch.cat(heat) if heat else torch.zeros(0, 1, 1, 1), frame),
    )


def joined(parts: Sequence[Result]) -> Result:
    """One result of at least one about the same image, phrases after phrases."""

    def together(name: str) -> Tensor:
        return torch.cat([getattr(part, name) for part in parts])

    return Result(
        image=parts[0].image,
        phrases=tuple(phrase for part in parts for phrase in part.phrases),
        refined=MaskLogits.cat([part.refined for part in parts]),
        coarse_logits=together("coarse_logits"),
        segmentations=tuple(code for part in parts for code in part.segmentations),
        scores=together("scores"),
        boxes=together("boxes"),
        probabilities=together("probabilities"),
        there=together("there"),
        heat=replace(parts[0].heat, maps=torch.cat([part.heat.maps for part in parts])),
    )


def _encode(mask: Tensor) -> dict[str, Any]:
    """(H, W) bool -> COCO's compressed run-length code."""
    encoded = coco_mask.encode(np.asfortranarray(mask.numpy(), dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": bytes(encoded["counts"])}
