"""From samples on disk to batches for the flow: what training and evaluation read with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from flmm_core.data import coco_masks
from flmm_core.data.pictures import read_picture
from flmm_core.data.sample import Sample
from flmm_core.errors import FlmmError
from flmm_core.pipeline.grounder import Grounder, GrounderBatch, GrounderInputs


@dataclass(frozen=True)
class Example:
    """One sample with its truth.

    Attributes:
        inputs: For the flow.
        truth: (P, H, W) bool at the picture's size.
        sample: Where it came from.
        index: Its place in the source.
    """

    inputs: GrounderInputs
    truth: Tensor
    sample: Sample
    index: int = 0


@dataclass(frozen=True)
class Unusable:
    """A sample that cannot be read or prepared, by its place in the source, and why."""

    index: int
    error: FlmmError


@dataclass(frozen=True)
class Examples:
    """A batch: `inputs` go through the flow together, the rest stays by sample."""

    inputs: GrounderBatch
    truths: tuple[Tensor, ...]
    samples: tuple[Sample, ...]
    indices: tuple[int, ...] = ()


class ExampleDataset(Dataset["Example | Unusable"]):
    """Reads and prepares one sample at a time; no weights, no randomness.

    A broken sample is handed on with its error: raised in a DataLoader worker, its message would
    arrive as a traceback.

    Args:
        samples: Where to read from.
        grounder: Prepares pictures and captions.
    """

    def __init__(self, samples: Sequence[Sample], grounder: Grounder) -> None:
        self.samples = samples
        self.grounder = grounder

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example | Unusable:
        try:
            return self.example(index)
        except FlmmError as error:
            return Unusable(index, error)

    def example(self, index: int) -> Example:
        """One sample; raises `FlmmError` if it cannot be used."""
        sample = self.samples[index]
        image = read_picture(sample.image_path, picture_hw=sample.picture_hw)
        masks = [coco_masks.decode(phrase.mask) for phrase in sample.phrases]
        return Example(
            inputs=self.grounder.prepare(image, sample.segments, name=sample.name),
            truth=torch.stack([torch.from_numpy(mask) for mask in masks]).bool(),
            sample=sample,
            index=index,
        )


class StepSampler(Sampler[list[int]]):
    """The samples of each step, from the seed and the step alone: a resumed run reads on exactly.

    Every pass over the data is a new permutation; a batch may reach from one into the next.
    """

    def __init__(self, total: int, batch_size: int, steps: range, seed: int) -> None:
        self.total, self.batch_size, self.steps, self.seed = total, batch_size, steps, seed

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[list[int]]:
        known: tuple[int, list[int]] = (-1, [])
        for step in self.steps:
            batch = []
            for place in range(step * self.batch_size, (step + 1) * self.batch_size):
                epoch, position = divmod(place, self.total)
                if known[0] != epoch:
                    chance = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
                    known = epoch, torch.randperm(self.total, generator=chance).tolist()
                batch.append(known[1][position])
            yield batch


Batches = Sampler[list[int]] | Sequence[list[int]]
"""Which samples go together, by their places."""


def load_batches(
    dataset: ExampleDataset,
    *,
    batch_size: int = 1,
    sampler: Batches | None = None,
    workers: int = 0,
) -> Iterator[Examples]:
    """Batches in the order of `sampler`, or else all samples once in their own order.

    Raises:
        FlmmError: A sample cannot be used.
    """
    if sampler is None:
        sampler = fixed_batches(len(dataset), batch_size)
    for batch, unusable in read_batches(dataset, sampler, workers=workers):
        if unusable:
            raise unusable[0].error
        if batch is not None:
            yield batch


def read_batches(
    dataset: ExampleDataset, sampler: Batches, *, workers: int = 0
) -> Iterator[tuple[Examples | None, tuple[Unusable, ...]]]:
    """The usable samples of each batch, None if there is none, and the others."""
    loader: DataLoader[Any] = DataLoader(
        dataset,
        num_workers=workers,
        collate_fn=_Collate(dataset.grounder),
        pin_memory=torch.cuda.is_available(),
        batch_sampler=sampler,
    )
    yield from loader


def fixed_batches(total: int, batch_size: int) -> list[list[int]]:
    """Samples in their own order; which ones go together never depends on who asks."""
    return [
        list(range(start, min(start + batch_size, total))) for start in range(0, total, batch_size)
    ]


class _Collate:
    def __init__(self, grounder: Grounder) -> None:
        self.grounder = grounder

    def __call__(
        self, examples: list[Example | Unusable]
    ) -> tuple[Examples | None, tuple[Unusable, ...]]:
        unusable = tuple(example for example in examples if isinstance(example, Unusable))
        whole = [example for example in examples if isinstance(example, Example)]
        if not whole:
            return None, unusable
        batch = Examples(
            inputs=self.grounder.collate([example.inputs for example in whole]),
            truths=tuple(example.truth for example in whole),
            samples=tuple(example.sample for example in whole),
            indices=tuple(example.index for example in whole),
        )
        return batch, unusable
