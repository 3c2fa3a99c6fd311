"""Which attention channels are worth keeping: those whose mass lies on what is meant.

The measure is that of the method `top-k-heads` (docs/baselines.md): the share of a map's mass in
the image that lies on the object, mean over the phrases of some training samples. It is a number
for each channel; the K highest are kept, of equal ones the first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flmm_core.config import Workers
from flmm_core.data.sample import Sample
from flmm_core.errors import UsageError
from flmm_core.evaluation.baselines import object_shares
from flmm_core.loader.dataset import ExampleDataset, load_batches
from flmm_core.pipeline.head_folder import Grounder
from flmm_core.pipeline.types import AttentionMaps
from flmm_core.progress import Progress

SAMPLES = 256
"""At most this many samples are looked at, spread evenly over those that are given."""
MEASURE = "share of a map's mass on the object, mean over phrases"


def choose_channels(
    grounder: Grounder,
    samples: Sequence[Sample],
    count: int,
    *,
    workers: Workers = 0,
    progress: Progress | None = None,
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The most useful channels, ascending, and how they were chosen, ready for JSON.

    Args:
        grounder: With its frozen parts and all channels.
        samples: Training samples.
        count: K, at least 1; all channels if there are fewer.
        workers: Processes that read images.
        progress: Is told how far it is.

    Raises:
        UsageError: No sample says where something is.
    """
    places = np.unique(np.linspace(0, len(samples) - 1, min(SAMPLES, len(samples))).round())
    few = [samples[int(place)] for place in places]
    total, phrases = torch.zeros(grounder.backbone.attention_channels, dtype=torch.float64), 0
    batches = load_batches(ExampleDataset(few, grounder), workers=workers)
    with (progress or Progress()).stage("Choosing channels", len(few)) as stage:
        for batch in batches:
            for features, truth in zip(grounder.observe(batch.inputs), batch.truths, strict=True):
                there = truth.flatten(1).any(1)
                maps = AttentionMaps(features.maps.maps.cpu()[there], features.maps.image_box)
                total += object_shares(maps, truth[there]).double().sum(0)
                phrases += int(there.sum())
            stage.advance()
    if not phrases:
        raise UsageError(
            f"The {count} most useful channels cannot be chosen.",
            found=f"None of {len(few)} training samples says where something is.",
            repair="Leave --channels out, or give data with masks.",
        )
    order = total.argsort(descending=True, stable=True)[:count].tolist()
    shares = (total / phrases).tolist()
    facts = {
        "measure": MEASURE,
        "phrases": phrases,
        "shares": [round(shares[channel], 6) for channel in sorted(order)],
        "mean_share_of_all": round(sum(shares) / len(shares), 6),
    }
    return tuple(sorted(order)), facts
