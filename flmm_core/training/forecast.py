"""What a run will take: hours, memory and disk, from a few steps and one evaluated batch.

They are done before the first step and undone: weights, optimizer and random numbers are then as
they were, so a run with a forecast gives the same head, bit for bit, as one without. Only features
that the run keeps in memory stay there.
"""

from __future__ import annotations

import math
import random
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.filesize import decimal

from flmm_core.data.sample import Sample
from flmm_core.data.sources import JoinedSamples
from flmm_core.errors import RunError
from flmm_core.evaluation.baselines import head_method
from flmm_core.evaluation.evaluate import measure_batches
from flmm_core.files import free_bytes
from flmm_core.loader.dataset import ObservedFeatures
from flmm_core.loader.samplers import image_batches
from flmm_core.training.loop import TrainingLoop
from flmm_core.training.preflight import memory_of
from flmm_core.training.step_cost import known_samples, time_steps, wait

EVALUATED_AT_ONCE = 16
"""Samples per batch of an evaluation."""
WORTH_IT = 50
"""Steps of a run that is forecast; a shorter one would be held up."""
FACTS_BYTES = 64 << 10
"""Of a checkpoint's other files."""
SHEET_BYTES = 300 << 10
"""Of one contact sheet."""


@dataclass(frozen=True)
class Forecast:
    """What a run will take from here to its end.

    Attributes:
        step_seconds: Of one step, with its data; the mean of all.
        training: Seconds of all steps; so `validation` and `evaluation`.
        is_whole: Whether the evaluation is counted: it is not if its models are loaded later.
        host_bytes: The most memory that this process will have held at once.
        device_bytes: The same on the accelerator; 0 on a CPU.
        disk_bytes: The run folder.
        trained: Parameters that are trained, of `parameters` in the head.
        vlm: Parameters of the frozen model; 0 if it is not loaded.
    """

    step_seconds: float
    training: float
    validation: float
    evaluation: float
    is_whole: bool
    host_bytes: int
    device_bytes: int
    disk_bytes: int
    trained: int
    parameters: int
    vlm: int

    @property
    def seconds(self) -> float:
        """From the first step to the end."""
        return self.training + self.validation + self.evaluation

    def lines(self, loop: TrainingLoop) -> list[str]:
        """For the user."""
        parts = [f"training {_duration(self.training)} ({_short(self.step_seconds)} a step)"]
        parts += [f"validation {_duration(self.validation)}"] if self.validation else []
        parts += [f"evaluation {_duration(self.evaluation)}"] if self.evaluation else []
        without = "" if self.is_whole else ", without the evaluation"
        total = memory_of(torch.device("cpu"))
        memory = f"Memory: {decimal(self.host_bytes)} of {decimal(total)}"
        if self.device_bytes:
            total = memory_of(loop.head.device)
            memory += f"; on the GPU {decimal(self.device_bytes)} of {decimal(total)}"
        free = decimal(free_bytes(loop.folder.path))
        return [
            f"Trained parameters: {_count(self.trained)} of {_count(self.parameters)} in the head"
            + (f"; the frozen model has {_count(self.vlm)}" if self.vlm else ""),
            f"Takes about {_duration(self.seconds)}{without}: {', '.join(parts)}",
            f"{memory}. Disk: {decimal(self.disk_bytes)} of {free} free",
        ]


def describe(loop: TrainingLoop, held_out: Mapping[str, Sequence[Sample]]) -> list[str]:
    """What a run trains on, and what will be measured on what; known without a step."""
    config, total = loop.config, len(loop.samples)
    per_epoch = max(1, math.ceil(total / config.samples_per_step))
    epochs = config.steps * config.samples_per_step / max(1, total)
    parts = {text: len(part) for text, part in zip(config.data, _parts(loop.samples), strict=True)}
    shown = f"{epochs:.2f}" if epochs < 1 else f"{epochs:.1f}"
    length = f"{config.steps} steps of {config.samples_per_step} are {shown} epochs"
    said = [f"Training data: {_counts(parts)}, {per_epoch} steps an epoch; {length}"]
    if loop.watched:
        parts = dict(zip(config.val_data, map(len, _parts(loop.watched)), strict=True))
        said.append(f"Validation: {_counts(parts)}, every {config.save_every} steps")
    if held_out:
        parts = {text: len(part) for text, part in held_out.items()}
        said.append(f"Evaluation: {_counts(parts)}, protocol {config.protocol}")
    return said


def announce(loop: TrainingLoop, held_out: Mapping[str, Sequence[Sample]]) -> None:
    """Say at the beginning of a run what it does and what it will take.

    Of a short one the steps tell as soon.
    """
    for line in describe(loop, held_out):
        loop.progress.say(line)
    if loop.config.steps >= WORTH_IT:
        for line in forecast(loop, held_out).lines(loop):
            loop.progress.say(line)


def forecast(
    loop: TrainingLoop,
    held_out: Mapping[str, Sequence[Sample]],
    *,
    clock: Callable[[], float] = time.perf_counter,
    processes: int | None = None,
) -> Forecast:
    """Time some steps and one batch of the evaluation, and undo them.

    Args:
        clock: Returns seconds.
        processes: That share the work; by default those of the loop. One of them is timed.

    Raises:
        RunError: The disk is too small for the checkpoints.
    """
    config, folder, size = loop.config, loop.folder, processes or loop.world.size
    last = folder.last() if config.resume else None
    done = int(last.name.removeprefix("step-")) if last else 0
    steps = range(done, config.steps)
    if loop.head.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(loop.head.device)
    with _undone(loop):
        cost = time_steps(loop, clock, size)
        device, extra = loop.head.device, 0
        observes = isinstance(loop.source, ObservedFeatures)
        others = JoinedSamples([*held_out.values()])
        watched, judged = loop.watched, others if observes else JoinedSamples([])
        sample_seconds = _time_evaluation(loop, [*filter(len, (judged, watched))], clock) / size
        if device.type == "cuda":
            extra = torch.cuda.max_memory_allocated(device)
    validations = sum(folder.is_scheduled(step + 1) for step in steps) if len(watched) else 0
    pictures = config.pictures if held_out and observes else 0
    known = known_samples(loop, len(steps), size, cost.bytes_each)
    step_seconds = cost.first + known.share * (cost.again - cost.first)
    found = Forecast(
        step_seconds=step_seconds,
        training=len(steps) * step_seconds,
        validation=validations * len(watched) * sample_seconds,
        evaluation=(len(judged) + pictures * size) * sample_seconds,
        is_whole=observes or not held_out,
        host_bytes=peak_memory() + known.bytes,
        device_bytes=extra,
        disk_bytes=_disk(loop, len(steps), pictures),
        trained=loop.head.trainable_parameters,
        parameters=sum(weight.numel() for weight in loop.head.parameters()),
        vlm=_vlm_parameters(loop),
    )
    _check_disk(folder.path, found.disk_bytes)
    return found


def peak_memory() -> int:
    """The most bytes of memory that this process held at once so far."""
    status = Path("/proc/self/status")
    if status.is_file():  # ru_maxrss also counts the program that started this one
        for line in status.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) << 10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak << 10


@contextmanager
def _undone(loop: TrainingLoop) -> Iterator[None]:
    """Afterwards weights, optimizer and random numbers are as they were."""
    head, optimizer = loop.head, loop.optimizer
    weights = {key: value.clone() for key, value in head.state_dict().items()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    states = random.getstate(), np.random.get_state()
    # Without the device named, torch warns where there are several.
    with torch.random.fork_rng([head.device] if head.device.type == "cuda" else []):
        try:
            yield
        finally:
            optimizer.zero_grad()
            optimizer.state.clear()
            for group, former in zip(optimizer.param_groups, groups, strict=True):
                group.update(former)
            head.load_state_dict(weights)
            head.eval()
            random.setstate(states[0])
            np.random.set_state(states[1])


def _time_evaluation(
    loop: TrainingLoop, parts: Sequence[Sequence[Sample]], clock: Callable[[], float]
) -> float:
    """Seconds per sample of one batch in the middle of the larger part, as it is evaluated."""
    if not parts:
        return 0.0
    samples = max(parts, key=len)
    batches = image_batches(samples, len(samples), EVALUATED_AT_ONCE)
    batch = batches[(len(batches) - 1) // 2]
    loop.head.eval()
    started = clock()
    for _ in measure_batches(head_method(loop.source, loop.head), samples, [batch]):
        wait(loop.head)
    return (clock() - started) / len(batch)


def _disk(loop: TrainingLoop, steps: int, pictures: int) -> int:
    """Bytes of the checkpoints that are there at once, one of them being written, and pictures."""
    weights: int = sum(t.numel() * t.element_size() for t in loop.head.state_dict().values())
    optimizer = 8 * loop.head.trainable_parameters  # two averages of each, in float32
    averaged = weights if loop.average.head is not loop.head else 0
    scheduled = math.ceil(steps / loop.config.save_every)
    kept = min(scheduled, loop.folder.keep + 2)
    return kept * (weights + optimizer + averaged + FACTS_BYTES) + pictures * SHEET_BYTES


def _check_disk(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free < needed:
        raise RunError(
            f"The run does not fit on the disk of '{folder}'.",
            found=f"It needs {decimal(needed)}; {decimal(free)} are free.",
            repair="Free some space, give another --output, or save less often (--save-every).",
        )


def _vlm_parameters(loop: TrainingLoop) -> int:
    if not isinstance(loop.source, ObservedFeatures):
        return 0
    vlm: Any = loop.source.observer.backbone.vlm
    return sum(weight.numel() for weight in vlm.parameters())


def _parts(samples: Sequence[Sample]) -> tuple[Sequence[Sample], ...]:
    return samples.parts if isinstance(samples, JoinedSamples) else (samples,)


def _counts(parts: Mapping[str, int]) -> str:
    return ", ".join(f"{text} ({count} samples)" for text, count in parts.items())


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.1f} B" if parameters >= 1e9 else f"{parameters / 1e6:.2f} M"


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=max(1, round(seconds))))


def _short(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
