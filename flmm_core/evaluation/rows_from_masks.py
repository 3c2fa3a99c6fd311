"""Turns masks into per-phrase rows: counts everything that scores need."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.data import rle
from flmm_core.data.sample import Mask, Sample
from flmm_core.evaluation.phrase_rows import PhraseRow, Rle
from flmm_core.files import printable
from flmm_core.loader.dataset import ExampleBatch
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.finite import check_masks
from flmm_core.pipeline.mask_logits import portions
from flmm_core.pipeline.types import Grounding

Calibrate = Callable[[Any], Any]
"""Evidence (P,) to probabilities (P,)."""


def rows_from_masks(
    groundings: Sequence[Grounding],
    batch: ExampleBatch,
    *,
    seconds: float = 0.0,
    folder: Path | None = None,
    calibrate: Calibrate | None = None,
    abstain_below: float | None = None,
) -> list[tuple[PhraseRow, ...]]:
    """The rows of a batch, one tuple per sample.

    Args:
        seconds: Wall-clock time of the batch, divided equally among the phrases.
        folder: Folder that `PhraseRow.picture` is relative to; None for absolute paths.
        calibrate: Maps evidence to probabilities.
        abstain_below: Answer "not there" below this probability: the final mask is emptied, and
            its point counts as a miss. The coarse mask stays.

    Raises:
        RunError: Logits are not finite.
    """
    if abstain_below is not None and calibrate is None:
        raise ValueError("there is no probability to abstain by")
    share = seconds / max(1, sum(len(sample.phrases) for sample in batch.samples))
    rows = []
    for grounding, truth, sample in zip(groundings, batch.truths, batch.samples, strict=True):
        check_masks(grounding, sample.name)
        evidence = grounding.evidence.cpu().numpy()
        likely: list[float | None] = [None] * len(evidence)
        if calibrate is not None:
            likely = calibrate(evidence).tolist()
        there = [abstain_below is None or (p or 0.0) >= abstain_below for p in likely]
        columns = {
            **_counts(grounding, truth, sample, there),
            "score": [round(score, 6) for score in evidence.tolist()],
            "probability": [None if p is None else round(p, 6) for p in likely],
            "there": there,
        }
        rows.append(
            tuple(
                PhraseRow(
                    item=f"{sample.name}:{place}",
                    picture=_relative(sample.image_path, folder),
                    as_stored=sample.as_stored,
                    phrase=phrase.text,
                    slice=phrase.slice,
                    tags=tuple(sorted(phrase.tags)),
                    size=(truth.shape[1], truth.shape[2]),
                    truth_segmentation=_rle(phrase.mask),
                    distractors=phrase.distractors,
                    seconds=round(share, 6),
                    **{name: column[place] for name, column in columns.items()},
                )
                for place, phrase in enumerate(sample.phrases)
            )
        )
    return rows


def intersection_union(pred: Tensor, truth: Tensor) -> tuple[list[int], list[int]]:
    """Intersection and union in pixels, P each, of (P, H, W) bool masks pair by pair.

    Raises:
        ValueError: The shapes differ.
    """
    if pred.shape != truth.shape:
        raise ValueError(f"pred is {tuple(pred.shape)}, truth is {tuple(truth.shape)}")
    return pixels(pred & truth), pixels(pred | truth)


def pixels(masks: Tensor) -> list[int]:
    """The number of pixels of each of (P, H, W) bool masks."""
    counts: list[int] = masks.flatten(1).sum(1).tolist()
    return counts


def box_iou(pred_xyxy: Tensor, truth_xyxy: Tensor) -> list[float]:
    """IoU of (P, 4) int64 boxes pair by pair, x1 and y1 exclusive; 0 if both are empty."""
    low = torch.maximum(pred_xyxy[:, :2], truth_xyxy[:, :2])
    high = torch.minimum(pred_xyxy[:, 2:], truth_xyxy[:, 2:])
    overlap = (high - low).clamp(min=0).prod(1)
    first, second = ((box[:, 2:] - box[:, :2]).prod(1) for box in (pred_xyxy, truth_xyxy))
    union = (first + second - overlap).clamp(min=1)
    ious: list[float] = (overlap.double() / union.double()).tolist()
    return ious


def _counts(
    grounding: Grounding, truth: Tensor, sample: Sample, there: Sequence[bool]
) -> dict[str, list[Any]]:
    """The fields that depend on pixels, one value per phrase."""
    columns: dict[str, list[Any]] = {}
    for part in portions(len(sample.phrases), sample.image_hw):
        ignored = [phrase.ignore for phrase in sample.phrases[part]]
        found = _counts_of(
            grounding.coarse_logits[part],
            grounding.refined[part].full().cpu(),
            truth[part],
            torch.from_numpy(rle.counted(ignored, sample.image_hw)),  # (p, H, W)
            torch.tensor(there[part], dtype=torch.bool),
        )
        for name, values in found.items():
            columns.setdefault(name, []).extend(values)
    return columns


def _counts_of(
    coarse_logits: Tensor, logits: Tensor, truth: Tensor, counted: Tensor, given: Tensor
) -> dict[str, list[Any]]:
    """As `_counts`, of some phrases at the size of the image."""
    size = (truth.shape[1], truth.shape[2])
    masks = (logits > 0) & given[:, None, None]
    found, truth = masks & counted, truth & counted
    probs = F.interpolate(coarse_logits.sigmoid()[:, None], size, mode="bilinear")
    coarse = (probs[:, 0] > 0.5).cpu() & counted
    intersection, union = intersection_union(found, truth)
    coarse_intersection, coarse_union = intersection_union(coarse, truth)
    target = pixels(truth)
    boxes = box_iou(tight_boxes(found), tight_boxes(truth))
    logits = logits.masked_fill(~counted, -torch.inf).flatten(1)
    # Of equal values, numpy's argmax returns the first; torch's does not.
    peaks = torch.from_numpy(logits.numpy().argmax(1))
    hits = truth.flatten(1).gather(1, peaks[:, None])[:, 0] & given
    return {
        "segmentation": [_rle(rle.encode(mask.numpy())) for mask in masks],
        "intersection": intersection,
        "union": union,
        "predicted": pixels(found),
        "truth": target,
        "ignored": pixels(~counted),
        "coarse_intersection": coarse_intersection,
        "coarse_union": coarse_union,
        "box_iou": _where(target, boxes),
        "point_in_mask": _where(target, hits.tolist()),
    }


def _where(target: Sequence[int], values: Sequence[Any]) -> list[Any]:
    """The values of phrases with target, None for the others."""
    return [value if pixels else None for pixels, value in zip(target, values, strict=True)]


def _rle(mask: Mask) -> Rle:
    height, width = mask["size"]
    return Rle(size=(height, width), counts=mask["counts"].decode("ascii"))


def _relative(path: Path, folder: Path | None) -> str:
    return printable((path if folder is None else path.absolute().relative_to(folder)).as_posix())
