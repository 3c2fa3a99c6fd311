"""A training step whose loss or gradient is not finite: its batch is kept for inspection.

runs/NAME/failed-step-N/failure.json    what was not finite: losses, gradients, features by sample
                        train/          the samples as a data set: jsonl:RUN/failed-step-N@train
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flmm_core.data import rle
from flmm_core.data.formats import FORMATS
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.sample import GroundedObject, Sample
from flmm_core.errors import FlmmError, RunError
from flmm_core.files import whole_folder, write_json
from flmm_core.loader.dataset import ExampleBatch
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.types import Features, Grounding
from flmm_core.training.losses import GroundingLoss
from flmm_core.training.run_folder import RunFolder


@dataclass(frozen=True)
class StepValues:
    """What a process computed in a step, which counts from 1."""

    number: int
    process: int
    batch: ExampleBatch
    features: Sequence[Features]
    groundings: Sequence[Grounding]
    loss: GroundingLoss


def insist_finite(value: Tensor, what: str, step: StepValues, head: Head, run: RunFolder) -> None:
    """RunError if the loss or the gradient's norm of a step is not finite.

    Args:
        value: A scalar.
        what: Its name: "loss".
        run: Gets the batch for inspection.
    """
    if torch.isfinite(value):
        return
    of_process = f"-process-{step.process}" if step.process else ""
    folder = run.path / f"failed-step-{step.number}{of_process}"
    names = ", ".join(sample.name for sample in step.batch.samples)
    try:
        _write(folder, step, head, {what: _plain(value)})
        kept = f"They are kept in '{folder}'"
    except (OSError, FlmmError) as error:
        kept = f"They cannot be kept in '{folder}' ({error})"
    raise RunError(
        f"The {what} of step {step.number} is {value.item()}.",
        found=f"Samples: {names}.\n{kept}; the weights are as before this step.",
        repair=f"{run.way_back()} Lower --learning-rate there, or begin a run with"
        " --dtype float32.",
    )


def _write(folder: Path, step: StepValues, head: Head, found: dict[str, Any]) -> None:
    with whole_folder(folder, replace=True) as aside:
        losses = {name: _plain(part) for name, part in step.loss.parts.items()}
        samples = [
            {
                "name": sample.name,
                "image": str(sample.image_path),
                "phrases": [phrase.text for phrase in sample.phrases],
                "finite": {
                    "attention maps": _finite(features.maps.maps),
                    "hidden states": _finite(features.hidden),
                    "image embedding": features.image is None
                    or all(map(_finite, features.image.tensors)),
                    "coarse logits": _finite(grounding.coarse_logits),
                    "refined logits": _finite(grounding.logits),
                },
            }
            for sample, features, grounding in zip(
                step.batch.samples, step.features, step.groundings, strict=True
            )
        ]
        write_json(
            aside / "failure.json",
            {
                "step": step.number,
                **found,
                "losses": losses,
                "gradients that are not finite": [
                    name
                    for name, weight in head.named_parameters()
                    if weight.grad is not None and not _finite(weight.grad)
                ],
                "samples": samples,
            },
        )
        FORMATS["jsonl"].write(aside, _images(step.batch.samples))


def _images(samples: Sequence[Sample]) -> Iterator[NewImage]:
    for number, sample in enumerate(samples):
        things = [
            GroundedObject(
                mask=phrase.mask,
                sentences=(phrase.text,),
                category=phrase.category,
                slice=phrase.slice,
                tags=phrase.tags,
                ignore=phrase.ignore,
                absent=not rle.area(phrase.mask),
            )
            for phrase in sample.phrases
        ]
        name = f"{number:03}-{sample.image_path.name}"
        yield NewImage(sample.image_path, name, things, [sample.segments])


def _finite(value: Tensor) -> bool:
    return bool(torch.isfinite(value).all())


def _plain(value: Tensor) -> float | str:
    """A number that JSON has, or the name of one that it has not."""
    number = float(value.item())
    return number if math.isfinite(number) else str(number)
