"""Chooses the attention channels that are worth storing, by the measure of `top-k-heads`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flmm_core.config import Workers
from flmm_core.data.sample import Sample
from flmm_core.errors import UsageError
from flmm_core.evaluation.baselines import labeled_maps, object_shares
from flmm_core.loader.dataset import ObservedFeatures
from flmm_core.loader.samplers import spread
from flmm_core.pipeline.observer import Observer
from flmm_core.pipeline.types import AttentionMaps
from flmm_core.progress import Progress

SAMPLES = 256
"""Maximum number of samples to choose on, spread evenly over those given."""


def choose_channels(
    observer: Observer, samples: Sequence[Sample], count: int, workers: Workers, progress: Progress
) -> tuple[tuple[int, ...], dict[str, Any]]:
    """The `count` channels with the highest share of their mass on the object.

    Where a head can read the last tokens of a phrase apart (`Observer.ends`), a channel counts by
    the best of its maps: the mean's, or a last token's.

    Returns:
        The channels, ascending, and how they were chosen, ready for JSON.

    Raises:
        UsageError: No sample has an object.
    """
    few = spread(samples, SAMPLES)
    kinds, channels = 1 + observer.ends, observer.vlm.attention_channels
    totals, phrases = torch.zeros(kinds, channels, dtype=torch.float64), 0
    with progress.stage("Choosing channels", len(few)) as stage:
        source = ObservedFeatures(observer)
        for maps, truth in labeled_maps(source, few, batch_size=1, workers=workers, stage=stage):
            ends = () if maps.ends is None else maps.ends.unbind(1)
            for total, each in zip(totals, (maps.maps, *ends), strict=True):
                total += object_shares(AttentionMaps(each, maps.image_box), truth).double().sum(0)
            phrases += len(truth)
    if not phrases:
        raise UsageError(
            f"The {count} most useful channels cannot be chosen.",
            found=f"None of {len(few)} training samples has an object.",
            repair="Omit --channels, or give data with masks.",
        )
    best = totals.amax(0)
    order = best.argsort(descending=True, stable=True)[:count].tolist()
    shares = (best / phrases).tolist()
    facts = {
        "measure": "share of a map's mass on the object, mean over phrases",
        "phrases": phrases,
        "shares": [round(shares[channel], 6) for channel in sorted(order)],
        "mean_share_of_all": round(sum(shares) / len(shares), 6),
    }
    return tuple(sorted(order)), facts
