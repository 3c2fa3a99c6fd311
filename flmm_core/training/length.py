"""When a run ends: its steps, the time it may take, and validations that no longer improve."""

from __future__ import annotations

import math
from collections.abc import Sequence

from flmm_core.config import RunConfig
from flmm_core.errors import UsageError


def with_steps(config: RunConfig, samples: int) -> RunConfig:
    """The settings with `epochs` as steps: the last one begins within the last epoch.

    Args:
        samples: Of the training data.

    Raises:
        UsageError: A run that is resumed had another number of samples.
    """
    if config.epochs is None:
        return config
    steps = max(1, math.ceil(config.epochs * samples / config.samples_per_step))
    if config.resume and config.steps not in (0, steps):
        raise UsageError(
            f"The training data of the run in '{config.output}' have changed.",
            found=f"{config.epochs:g} epochs were {config.steps} steps when it began; of the"
            f" {samples} samples that there are now they are {steps}.",
            repair="Bring back the data, or begin a run with another --output.",
        )
    return config.model_copy(update={"steps": steps})


def epochs_of(config: RunConfig, samples: int) -> float:
    """How often a run sees each of its samples."""
    return config.steps * config.samples_per_step / max(1, samples)


def is_exhausted(scores: Sequence[float], patience: int | None) -> bool:
    """Whether none of the last `patience` validation scores is higher than those before them."""
    if patience is None:
        return False
    best = -math.inf
    since = 0
    for score in scores:
        since = 0 if score > best else since + 1
        best = max(best, score)
    return since >= patience
