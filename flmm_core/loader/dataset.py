"""From samples on disk to batches for the flow: what training and evaluation read with."""

from __future__ import annotations

import copy
import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler, get_worker_info
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from flmm_core.config import Workers
from flmm_core.data import rle
from flmm_core.data.images import read_image
from flmm_core.data.sample import Sample
from flmm_core.errors import FlmmError, reader_died
from flmm_core.loader.packing import Packed, pack
from flmm_core.loader.workers import count_workers
from flmm_core.pipeline.grounder import Grounder, GrounderBatch, GrounderInputs


@dataclass(frozen=True)
class Example:
    """One sample with its truth.

    Attributes:
        inputs: For the flow.
        truth: (P, H, W) bool at the image's size.
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

    def pin_memory(self) -> Examples:
        """The same with page-locked tensors; what a DataLoader calls."""
        truths = tuple(truth.pin_memory() for truth in self.truths)
        return replace(self, inputs=self.inputs.pin_memory(), truths=truths)


@dataclass(frozen=True)
class _Read:
    """The image that was read last: file and size, pixels, and a sample of it."""

    asked: tuple[Path, tuple[int, int]]
    image: Image.Image
    inputs: GrounderInputs


@runtime_checkable
class StoredInputs(Protocol):
    """A flow that has kept what it needs of each sample, so that no image is read."""

    def stored(self, sample: Sample) -> Any:
        """For the flow's `collate`."""
        ...


class ExampleDataset(Dataset["Example | Unusable"]):
    """Reads and prepares one sample at a time; no weights, no randomness.

    A broken sample is handed on with its error: raised in a DataLoader worker, its message would
    arrive as a traceback.

    Args:
        samples: Where to read from.
        grounder: Prepares images and captions.
    """

    def __init__(self, samples: Sequence[Sample], grounder: Grounder) -> None:
        self.samples = samples
        self.grounder = grounder
        self._last: _Read | None = None

    def __getstate__(self) -> dict[str, Any]:
        """What a worker gets that is not forked: no weights, which may lie on an accelerator."""
        return {**self.__dict__, "grounder": _without_weights(self.grounder), "_last": None}

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
        inputs = self._inputs(sample)
        masks = [rle.decode(phrase.mask) for phrase in sample.phrases]
        return Example(
            inputs=inputs,
            truth=torch.stack([torch.from_numpy(mask) for mask in masks]).bool(),
            sample=sample,
            index=index,
        )

    def _inputs(self, sample: Sample) -> Any:
        if isinstance(self.grounder, StoredInputs):
            return self.grounder.stored(sample)
        asked = sample.image_path, sample.image_hw
        # Sentences about one image follow each other: it is read once, and what was made of it
        # is taken over, so that VLM and refiner run it once.
        known = self._last if self._last is not None and self._last.asked == asked else None
        image = known.image if known else read_image(asked[0], image_hw=asked[1])
        like = known.inputs if known else None
        inputs = self.grounder.prepare(image, sample.segments, name=sample.name, like=like)
        if not known:
            self._last = _Read(asked, image, inputs)
        return inputs


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
                    known = epoch, self._order(epoch)
                batch.append(known[1][position])
            yield batch

    def _order(self, epoch: int) -> list[int]:
        """All samples once, in the order of one pass."""
        chance = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order: list[int] = torch.randperm(self.total, generator=chance).tolist()
        return order


Batches = Sampler[list[int]] | Sequence[list[int]]
"""Which samples go together, by their places."""


def load_batches(
    dataset: ExampleDataset,
    *,
    batch_size: int = 1,
    sampler: Batches | None = None,
    workers: Workers = 0,
) -> Generator[Examples, None, None]:
    """Batches in the order of `sampler`, or else all samples once in their own order.

    Raises:
        FlmmError: A sample cannot be used.
        RunError: A worker died.
    """
    if sampler is None:
        sampler = fixed_batches(len(dataset), batch_size)
    for batch, unusable in read_batches(dataset, sampler, workers=workers):
        if unusable:
            raise unusable[0].error
        if batch is not None:
            yield batch


def read_batches(
    dataset: ExampleDataset, sampler: Batches, *, workers: Workers = 0
) -> Generator[tuple[Examples | None, tuple[Unusable, ...]], None, None]:
    """The usable samples of each batch, None if there is none, and the others.

    Workers live until the last batch, each two batches ahead, and end with this generator: close
    it, or let go of it.

    Args:
        dataset: Reads and prepares.
        sampler: Which samples go together, in order.
        workers: Processes that read images, see `count_workers`.

    Raises:
        RunError: A worker died.
    """
    device = dataset.grounder.device
    loader: DataLoader[Any] = DataLoader(
        dataset,
        num_workers=count_workers(workers, device),
        collate_fn=_Collate(dataset.grounder),
        pin_memory=device.type == "cuda",
        batch_sampler=sampler,
        worker_init_fn=_leave_signals,
    )
    iterator = iter(loader)
    try:
        for found in iterator:
            yield found.unpack() if isinstance(found, Packed) else found
    except (RuntimeError, ConnectionError, EOFError) as error:
        raise reader_died(error) or error from error
    finally:
        # Let go of alone, they would live as long as the traceback of an error that ended this.
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


def _leave_signals(worker: int) -> None:
    """Ctrl-C reaches workers, too: the main process decides when they end."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _without_weights(module: nn.Module) -> Any:
    """A copy that can do what needs no weights; shares all else, and is small when pickled."""
    light = copy.copy(module)
    light._parameters, light._buffers = {}, {}
    light._modules = {
        name: child and _without_weights(child) for name, child in module._modules.items()
    }
    return light


def fixed_batches(total: int, batch_size: int) -> list[list[int]]:
    """Samples in their own order; which ones go together never depends on who asks."""
    return [
        list(range(start, min(start + batch_size, total))) for start in range(0, total, batch_size)
    ]


class _Collate:
    def __init__(self, grounder: Grounder) -> None:
        self.grounder = grounder

    def __getstate__(self) -> dict[str, Any]:
        return {"grounder": _without_weights(self.grounder)}

    def __call__(
        self, examples: list[Example | Unusable]
    ) -> tuple[Examples | None, tuple[Unusable, ...]] | Packed:
        found = self.join(examples)
        return found if get_worker_info() is None else pack(found)

    def join(
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
