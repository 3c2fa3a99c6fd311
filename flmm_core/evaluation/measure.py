"""From masks to rows: what each phrase's mask is worth, counted once for scores and files alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.data import rle
from flmm_core.data.sample import Mask, Sample
from flmm_core.errors import RunError
from flmm_core.evaluation.metrics import box_iou, intersection_union, peaks
from flmm_core.evaluation.metrics.masks import pixels
from flmm_core.evaluation.phrase_rows import Item, Rle
from flmm_core.loader.dataset import Examples
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.types import Grounding

Calibrate = Callable[[Any], Any]
"""Raw scores (P,) to probabilities (P,)."""


def measure(
    groundings: Sequence[Grounding],
    batch: Examples,
    *,
    seconds: float = 0.0,
    folder: Path | None = None,
    calibrate: Calibrate | None = None,
    abstain_below: float | None = None,
) -> list[tuple[Item, ...]]:
    """The rows of a batch, a tuple a sample.

    Args:
        groundings: What was found, sample by sample.
        batch: What is true.
        seconds: Wall-clock time that the flow took for the batch; shared out equally.
        folder: What the rows' `picture` is relative to; without it they are whole paths.
        calibrate: Makes a probability of each score.
        abstain_below: Answer "not there" where the probability is below this: the final mask
            becomes empty, and points nowhere. The coarse one stays, as no answer is made of it.

    Raises:
        RunError: A mask's logits are not numbers.
    """
    if abstain_below is not None and calibrate is None:
        raise ValueError("there is no probability to abstain by")
    share = seconds / max(1, sum(len(sample.phrases) for sample in batch.samples))
    return [
        _rows(grounding, truth, sample, share, folder, calibrate, abstain_below)
        for grounding, truth, sample in zip(groundings, batch.truths, batch.samples, strict=True)
    ]


def at_image_size(coarse_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(P, h, w) logits -> (P, H, W) bool: probabilities enlarged, then above one half."""
    probs = F.interpolate(coarse_logits.sigmoid()[:, None], size, mode="bilinear")
    return probs[:, 0] > 0.5


def _rows(
    grounding: Grounding,
    truth: Tensor,
    sample: Sample,
    seconds: float,
    folder: Path | None,
    calibrate: Calibrate | None,
    abstain_below: float | None,
) -> tuple[Item, ...]:
    size = (int(truth.shape[1]), int(truth.shape[2]))
    masks, logits = grounding.masks.cpu(), grounding.logits.float().cpu()
    if torch.isnan(logits).any():
        raise RunError(
            f"The masks of '{sample.name}' are not numbers.",
            found=f"{int(torch.isnan(logits).sum())} of {logits.numel()} logits are nan.",
            repair="Use --dtype float32, or another head.",
        )
    evidence = grounding.evidence.cpu().numpy()
    scores = [round(score, 6) for score in evidence.tolist()]
    probabilities: list[Any] = [None] * len(scores)
    if calibrate is not None:
        probabilities = calibrate(evidence).tolist()
    given = [abstain_below is None or likely >= abstain_below for likely in probabilities]
    masks &= torch.tensor(given, dtype=torch.bool)[:, None, None]
    coarse = at_image_size(grounding.coarse_logits, size).cpu()
    ignored_masks = [phrase.ignore for phrase in sample.phrases]
    counted = torch.from_numpy(rle.counted(ignored_masks, size))  # (P, H, W)
    found, truth, coarse = masks & counted, truth & counted, coarse & counted
    intersection, union = intersection_union(found, truth)
    coarse_intersection, coarse_union = intersection_union(coarse, truth)
    boxes = box_iou(tight_boxes(found), tight_boxes(truth))
    points = peaks(logits.masked_fill(~counted, -torch.inf))
    predicted, true, ignored = pixels(found), pixels(truth), pixels(~counted)
    rows = []
    for place, phrase in enumerate(sample.phrases):
        x, y = points[place].tolist()
        there = bool(true[place])
        rows.append(
            Item(
                item=f"{sample.name}:{place}",
                picture=_relative(sample.image_path, folder),
                phrase=phrase.text,
                slice=phrase.slice,
                tags=tuple(sorted(phrase.tags)),
                size=size,
                segmentation=_rle(rle.encode(masks[place].numpy())),
                truth_segmentation=_rle(phrase.mask),
                intersection=int(intersection[place]),
                union=int(union[place]),
                predicted=int(predicted[place]),
                truth=int(true[place]),
                ignored=int(ignored[place]),
                coarse_intersection=int(coarse_intersection[place]),
                coarse_union=int(coarse_union[place]),
                score=scores[place],
                probability=_probability(probabilities[place]),
                there=given[place],
                box_iou=float(boxes[place]) if there else None,
                point_in_mask=given[place] and bool(truth[place, y, x]) if there else None,
                distractors=phrase.distractors,
                seconds=round(seconds, 6),
            )
        )
    return tuple(rows)


def _probability(value: float | None) -> float | None:
    return None if value is None else round(float(value), 6)


def _rle(mask: Mask) -> Rle:
    height, width = mask["size"]
    return Rle(size=(height, width), counts=mask["counts"].decode("ascii"))


def _relative(path: Path, folder: Path | None) -> str:
    return (path if folder is None else path.absolute().relative_to(folder)).as_posix()
