"""What limits a head's masks: what it finds, the cells of its attention, or SAM?

    python -m recipes.limits RUN                # RUN: a trained head

cIoU by kind of scene, coarse and refined, of the head; and of its refiner behind better coarse
masks, of the size of the head's own:

cells   each cell of the attention maps says how much of it the object covers, and nothing in
        between is known;
truth   each cell of the coarse mask says so: no coarse mask can be better.

Where "truth" is low, the refiner is the limit; where only "cells" is, the VLM's grid is; otherwise
the attention did not find the object, or the mask head did not see it there. "right" is how often
the head's refined mask fits the thing that is meant better than any other of the image, and the
cIoU of these.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from flmm_core import Grounder
from flmm_core.data.sources import open_source
from flmm_core.evaluation.rows_from_masks import intersection_union
from flmm_core.loader.dataset import ExampleDataset, ObservedFeatures, read_batches
from flmm_core.loader.samplers import fixed_batches
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.resample import resize, resize_truth
from flmm_core.pipeline.types import AttentionMaps, Features

WAYS = ("head", "cells", "truth")
COVERED = 0.9
"""Logits of coverages beyond this and below its rest are the same: a head is as sure."""


def coverage_logits(truth: Tensor, cells: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """(P, H, W) bool masks -> (P, h, w) logits, from what each cell says, enlarged to a size."""
    covered = resize_truth(truth, cells)
    if cells != size:
        covered = resize(covered, size)
    return covered.clamp(1 - COVERED, COVERED).logit() * 2


def fits_its_own(masks: Tensor, truth: Tensor) -> list[bool]:
    """(P, H, W) bool masks and truths -> whether each mask has its highest IoU with its own."""
    counts = [intersection_union(masks, other.expand_as(masks)) for other in truth]
    inside, around = (torch.tensor(each) for each in zip(*counts, strict=True))
    ious = inside / around.clamp(min=1)  # (truths, masks)
    own: Tensor = ious.diagonal()
    return ((own > 0) & (own == ious.amax(0))).tolist()  # type: ignore[no-any-return]


def cells_of(maps: AttentionMaps) -> tuple[int, int]:
    """How many cells the image has in maps that may reach beyond it."""
    y0, x0, y1, x1 = maps.image_box
    h, w = maps.maps.shape[-2:]
    return max(1, round(h / (y1 - y0))), max(1, round(w / (x1 - x0)))


@torch.no_grad()
def coarse_and_refined(
    grounder: Grounder, features: Features, truth: Tensor
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Each of `WAYS`, with its coarse and refined masks, (P, H, W) bool."""
    (found,) = grounder.head([features])
    size = (found.coarse_logits.shape[-2], found.coarse_logits.shape[-1])
    yield "head", MaskLogits(found.coarse_logits, features.image_hw).masks(), found.refined.masks()
    for way, cells in (("cells", cells_of(features.maps)), ("truth", size)):
        coarse = coverage_logits(truth, cells, size)
        (refined,) = grounder.head.refiner([features.image], [coarse], (), [features.image_hw])
        yield way, MaskLogits(coarse, features.image_hw).masks(), refined.masks()


def measure(run: str, data: str, limit: int | None = None) -> dict[str, list[float]]:
    """By kind of scene, how many phrases, how many are right, their cIoU, and that of each way."""
    grounder = Grounder.from_pretrained(run, device="cpu")
    if grounder.head.refiner.uses_text:
        raise SystemExit("The head's refiner reads words: no mask alone is its limit.")
    samples = open_source(data, "standard")
    source = ObservedFeatures(grounder.observer)
    sums: dict[str, list[list[int]]] = defaultdict(list)
    batches = fixed_batches(min(limit or len(samples), len(samples)), 8)
    for batch, _ in read_batches(ExampleDataset(samples, source), batches):
        if batch is None:
            continue
        observed = source.features(batch.inputs)
        for sample, features, truth in zip(batch.samples, observed, batch.truths, strict=True):
            ways = coarse_and_refined(grounder, features, truth)
            masks = [one for _, *both in ways for one in both]
            counts = [intersection_union(one, truth) for one in masks]
            right = fits_its_own(masks[1], truth)
            for place, phrase in enumerate(sample.phrases):
                row = [n[place] for pair in counts for n in pair]
                kept = [right[place] * n for n in row[2:4]]
                sums[phrase.slice or "all"].append([right[place], *kept, *row])
    figures = {}
    for kind, rows in sums.items():
        right, *total = torch.tensor(rows).sum(0).tolist()
        scores = [i / max(u, 1) for i, u in zip(total[::2], total[1::2], strict=True)]
        figures[kind] = [len(rows), right / len(rows), *scores]
    return figures


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure what limits a head's masks.")
    parser.add_argument("run", help="a trained head")
    parser.add_argument("--data", default="shapes@hard")
    parser.add_argument("--limit", type=int, help="the first samples only")
    given = parser.parse_args(arguments)
    ways = " | ".join(f"{way}: coarse → refined" for way in WAYS)
    print(f"| scenes | phrases | right: share, cIoU | {ways} |")
    print(f"|---|--:|---|{'---|' * len(WAYS)}")
    for kind, (count, right, own, *scores) in sorted(
        measure(given.run, given.data, given.limit).items()
    ):
        pairs = zip(scores[::2], scores[1::2], strict=True)
        cells = " | ".join(f"{coarse:.2f} → {refined:.2f}" for coarse, refined in pairs)
        print(f"| {kind} | {count} | {right:.2f}, {own:.2f} | {cells} |")


if __name__ == "__main__":
    main()
