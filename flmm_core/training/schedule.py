"""The learning rate over a run."""

from __future__ import annotations

import math

from flmm_core.config import RunConfig


def rate(step: int, config: RunConfig) -> float:
    """Fraction of the highest learning rate at a step: linear warm-up, then cosine to 0."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))
