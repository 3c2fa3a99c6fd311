"""What a step costs: of samples that are new, or known."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import torch

from flmm_core.data.sample import Sample
from flmm_core.loader.dataset import ExampleDataset, count_workers
from flmm_core.loader.remembered import Key, RememberedFeatures
from flmm_core.loader.samplers import sample_extents, spread
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.types import Features
from flmm_core.training.loop import TrainingLoop
from flmm_core.world import part

LOOKED_AT = 1024
"""Training samples among which typical ones are chosen."""
LONGEST, MOST_STEPS = 2.5, 6
"""Steps are timed for this many seconds, and at least 2, at most 6 of them."""


@dataclass(frozen=True)
class StepCost:
    """Seconds of a step of samples that are new, and of known ones, whose features are kept.

    `bytes_each` are those of the features of a sample, 0 if none are kept.
    """

    first: float
    again: float
    bytes_each: float = 0.0


@dataclass(frozen=True)
class Known:
    """The bytes of the features that will be kept, and the share of samples that find them."""

    bytes: int
    share: float


def time_steps(loop: TrainingLoop, clock: Callable[[], float], processes: int) -> StepCost:
    """A typical step of one process; the first one warms up and is not counted.

    Features that are kept in memory stay there: the run need not compute them again.
    """
    config, memory = loop.config, _remembered(loop)
    share = math.ceil(config.samples_per_step / processes)
    every, taken = by_length(loop.samples), list[tuple[float, float]]()
    begun, bytes_each = clock(), 0.0
    known: dict[Key, Features] = {} if memory is None else memory.forget()
    loop.head.train()
    for number in range(1 + MOST_STEPS):
        order = alike(loop.samples, every, number) if config.bucket else every
        indices = typical(order, share, number)
        first = again = _time_step(loop, indices, clock)
        if memory is not None:
            bytes_each = memory.bytes / max(1, memory.count)
            if taken:
                again = _time_step(loop, indices, clock)
            known |= memory.forget()
        taken.append((first, again))
        if len(taken) > 2 and clock() - begun > LONGEST:
            break
    if memory is not None:
        memory.know(known)
    loop.optimizer.zero_grad()
    first, again = map(fmean, zip(*taken[1:], strict=True))
    return StepCost(first, again, bytes_each)


def _time_step(loop: TrainingLoop, indices: Sequence[int], clock: Callable[[], float]) -> float:
    """Seconds of a step on some samples."""
    config, head = loop.config, loop.head
    dataset = ExampleDataset(loop.samples, loop.trained_on, fill=True)
    workers = count_workers(config.workers, loop.source.device)
    started, reading = clock(), 0.0
    loop.optimizer.zero_grad()
    for place in range(config.accumulate):
        before = clock()
        some = [dataset[index] for index in part(indices, place, config.accumulate)]
        batch = dataset.collate(some)[0] if some else None
        reading += clock() - before
        if batch is not None:
            loss = loop.loss_of(batch)[2].total
            if loss.requires_grad:
                loss.backward()
    torch.nn.utils.clip_grad_norm_(loop.weights, config.clip_norm)
    loop.optimizer.step()
    wait(head)
    running = clock() - started - reading  # while which workers read
    return max(reading / workers, running) if workers else reading + running


def _remembered(loop: TrainingLoop) -> RememberedFeatures | None:
    """The features that a run keeps in memory, if it does."""
    return loop.trained_on if isinstance(loop.trained_on, RememberedFeatures) else None


def known_samples(loop: TrainingLoop, steps: int, processes: int, bytes_each: float) -> Known:
    """What a process will keep in memory in some steps, every epoch having each sample once."""
    memory, total = _remembered(loop), max(1, len(loop.samples))
    drawn = steps * loop.config.samples_per_step
    if memory is None or not drawn:
        return Known(0, 0.0)
    fit, known, hits, left = memory.limit / max(1.0, bytes_each), 0.0, 0.0, float(drawn)
    while left > 0:  # epoch by epoch
        own = min(left, total) / processes
        found = own * known / total
        known = max(known, min(fit, known + own - found))
        hits, left = hits + found, left - total
    return Known(round(known * bytes_each), hits * processes / drawn)


def by_length(samples: Sequence[Sample]) -> list[int]:
    """Indices of at most `LOOKED_AT` samples, from short captions to long ones."""
    among = spread(range(len(samples)), LOOKED_AT)
    characters = sample_extents([samples[index] for index in among])[:, 2]
    return [among[place] for place in np.argsort(characters, kind="stable").tolist()]


def alike(samples: Sequence[Sample], order: Sequence[int], number: int) -> list[int]:
    """A quarter of the indices, of images of similar shape; others for each number."""
    height, width, _ = sample_extents([samples[index] for index in order]).T
    by_shape = np.argsort(height / width, kind="stable")
    count = max(1, len(order) // 4)
    start = round((len(order) - count) * (number * 0.618 % 1))
    return [order[place] for place in sorted(by_shape[start : start + count].tolist())]


def typical(order: Sequence[int], count: int, number: int) -> list[int]:
    """`count` of the indices from `by_length`, of short and long ones; others for each number."""
    shift = 0.25 + 0.5 * (number * 0.618 % 1)
    return [order[int((place + shift) / count * len(order))] for place in range(count)]


def wait(head: Head) -> None:
    """Until an accelerator is done with its work."""
    if head.device.type == "cuda":
        torch.cuda.synchronize(head.device)
