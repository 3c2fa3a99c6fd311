"""What a head would score that finds objects but not which one is meant: the control's measure.

    python -m recipes.all_objects shapes@test

Every phrase is answered with all objects of its image. A head behind a VLM with random weights
can learn that much from saliency; only one that uses attention to words exceeds it.
"""

from __future__ import annotations

import argparse
import json

import numpy as np
import torch

from flmm_core.data import rle
from flmm_core.data.sources import open_source
from flmm_core.evaluation.rows_from_masks import intersection_union


def all_objects(source: str) -> dict[str, float]:
    """cIoU and mIoU of answering every phrase of a source with all objects of its image."""
    intersections, unions = [], []
    for sample in open_source(source, "flmm-paper"):
        truth = torch.from_numpy(np.stack([rle.decode(phrase.mask) for phrase in sample.phrases]))
        counts = intersection_union(truth.any(0).expand_as(truth), truth)
        intersections += counts[0]
        unions += counts[1]
    ious = np.divide(intersections, np.maximum(unions, 1))
    return {"ciou": sum(intersections) / sum(unions), "miou": float(ious.mean())}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Score all objects for every phrase.")
    parser.add_argument("source")
    print(json.dumps(all_objects(parser.parse_args().source), indent=2))
