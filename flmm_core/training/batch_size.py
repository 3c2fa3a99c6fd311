"""`--batch-size auto`: in how many parts a step has to be done so that it fits into memory.

The samples of a step stay the same, and so does its gradient up to the order of its sums: a run
does not depend on the memory of its machine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import cycle, islice

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from flmm_core.errors import RunError
from flmm_core.loader.dataset import ExampleDataset
from flmm_core.loader.samplers import sample_extents
from flmm_core.training.loop import TrainingLoop
from flmm_core.training.losses import Counts


def fit_into_memory(loop: TrainingLoop) -> None:
    """Try the largest samples, and set `batch_size` and `accumulate` of the loop's settings.

    Parts are halved until forward and backward pass fit beside what the optimizer will take. No
    weight changes. All processes do as many parts as the one that needs the most.

    Raises:
        RunError: A single sample does not fit.
    """
    config = loop.config
    share = math.ceil(config.samples_per_step / loop.world.size)
    parts = min(config.accumulate, share)
    while not _fits_everywhere(loop, math.ceil(share / parts)):
        with loop.world.agreed():
            if parts == share:
                raise RunError(
                    "There is not enough memory to train on the largest sample alone.",
                    found=f"Tried on {loop.head.device}.",
                    repair="Use a smaller --model or smaller images (see `flmm backbones show`), "
                    "--precision bf16, or a device with more memory.",
                )
        parts = min(2 * parts, share)
    accumulate = max(parts, config.accumulate)
    update = {"batch_size": config.samples_per_step, "accumulate": accumulate}
    loop.config = config.model_copy(update=update)
    at_once = math.ceil(share / parts)
    loop.progress.say(
        f"Batch size {config.samples_per_step}, {at_once} at a time (--accumulate {accumulate})"
        + ("" if loop.head.device.type != "cpu" else "; on a CPU, memory is not measured")
    )


def _fits_everywhere(loop: TrainingLoop, count: int) -> bool:
    with loop.world.agreed():
        fits = _fits(loop, count)
    return not loop.world.any(not fits)


def _fits(loop: TrainingLoop, count: int) -> bool:
    """Whether `count` of the largest samples, by their captions and by their images, fit."""
    fits = True
    loop.head.train()
    try:
        _try(loop, count)
    except RuntimeError as error:
        if not (isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)):
            raise
        fits = False
    # Not in the handler: until its end the error holds on to all that was allocated.
    loop.optimizer.zero_grad()
    loop.head.eval()
    clear_device_cache(garbage_collection=True)
    return fits


def _try(loop: TrainingLoop, count: int) -> None:
    head = loop.head
    averages = torch.empty(2, head.trainable_parameters, device=head.device)  # of the optimizer
    dataset = ExampleDataset(loop.samples, loop.trained_on, fill=True)
    for indices in _largest(loop, count):
        batch, _ = dataset.collate([dataset[index] for index in indices])
        if batch is not None:
            loop.backward(0, batch, Counts.of(head, batch.samples))
    del averages


def _largest(loop: TrainingLoop, count: int) -> Iterator[list[int]]:
    extents = sample_extents(loop.samples)
    for sizes in (extents[:, 2], extents[:, 0] * extents[:, 1]):
        order = (-sizes).argsort(kind="stable").tolist()
        yield list(islice(cycle(order), count))  # a batch may be of several epochs
