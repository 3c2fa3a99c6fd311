"""What a head would score that finds things but not which one is meant: the control's measure.

    python -m recipes.all_objects shapes@test

Every phrase is answered with all objects of its image. A head behind a VLM with random weights
can learn that much from what stands out; only one that uses attention to words gets beyond it.
"""

from __future__ import annotations

import argparse
import json

import numpy as np

from flmm_core.data import rle
from flmm_core.data.sources import open_source
from flmm_core.evaluation.metrics import MaskScores


def all_objects(source: str) -> MaskScores:
    """The scores of answering every phrase of a source with all objects of its image."""
    scores = MaskScores()
    for sample in open_source(source, "flmm-paper"):
        truth = np.stack([rle.decode(phrase.mask) for phrase in sample.phrases])
        scores.add(np.repeat(truth.any(0)[None], len(truth), 0), truth)
    return scores


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Score all objects for every phrase.")
    parser.add_argument("source")
    print(json.dumps(all_objects(parser.parse_args().source).to_dict(), indent=2))
