"""From samples on disk to batches, for training, evaluation and the cache."""

from __future__ import annotations

import os
import signal
from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.multiprocessing import set_sharing_strategy
from torch.utils.data import DataLoader, Dataset, Sampler
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from flmm_core.config import Workers
from flmm_core.data import rle
from flmm_core.data.images import read_image
from flmm_core.data.left_out import LeftOut
from flmm_core.data.sample import Sample
from flmm_core.errors import FlmmError, dead_worker_error
from flmm_core.loader.cpus import usable_cpus
from flmm_core.loader.samplers import fixed_batches
from flmm_core.pipeline.observer import Observer, ObserverInputs
from flmm_core.pipeline.types import Features
from flmm_core.progress import Progress

TRIES = 50
"""How many samples are tried in place of one that cannot be used."""
MOST = 8
"""More workers are faster than any model on one accelerator."""


class FeatureSource(ABC):
    """Source of features: the frozen models, or a cache.

    `prepare` and `collate` run in DataLoader workers and need no weights, so a pickled source
    contains none. What they return is up to the source.

    Attributes:
        device: Device of `features`.
    """

    device: torch.device

    @abstractmethod
    def prepare(self, sample: Sample) -> Any:
        """Read one sample from disk.

        Raises:
            FlmmError: It cannot be used.
        """

    def expect(  # noqa: B027
        self, samples: Sequence[Sample], left_out: LeftOut, progress: Progress
    ) -> None:
        """Check that features of these samples are available, before training on them.

        Those that could not be computed go to `left_out`.

        Raises:
            DataError: Some are missing.
        """

    @abstractmethod
    def collate(self, prepared: Sequence[Any]) -> Any:
        """One batch of at least one prepared sample."""

    @abstractmethod
    def features(
        self, batch: Any, *, layer_weights: Sequence[float] | None = None
    ) -> tuple[Features, ...]:
        """One `Features` per sample of a collated batch; runs in the main process.

        `layer_weights`: see `Backbone.trace`.
        """


class ObservedFeatures(FeatureSource):
    """Reads images and runs the frozen models on them.

    `captions`: keep the hidden states of whole captions, for a head that selects keywords.
    """

    def __init__(self, observer: Observer, *, captions: bool = False) -> None:
        self.observer = observer
        self.captions = captions
        self.device = observer.device
        self._last: tuple[Any, Image.Image, ObserverInputs] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_last": None}

    def prepare(self, sample: Sample) -> ObserverInputs:
        """Read one sample; consecutive samples of the same image share it."""
        path, size, as_stored = sample.image_path, sample.image_hw, sample.as_stored
        last = self._last
        if last is not None and last[0] == (path, size, as_stored):
            return self.observer.prepare(last[1], sample.segments, name=sample.name, like=last[2])
        image = read_image(path, image_hw=size, as_stored=as_stored)
        inputs = self.observer.prepare(image, sample.segments, name=sample.name)
        self._last = (path, size, as_stored), image, inputs
        return inputs

    def collate(self, prepared: Sequence[Any]) -> Any:
        return self.observer.collate(prepared)

    def features(
        self, batch: Any, *, layer_weights: Sequence[float] | None = None
    ) -> tuple[Features, ...]:
        return self.observer.observe(batch, layer_weights=layer_weights, captions=self.captions)


@dataclass(frozen=True)
class Example:
    """One sample, prepared by the feature source; `truth` is (P, H, W) bool at image size."""

    inputs: Any
    truth: Tensor
    sample: Sample
    index: int = 0


@dataclass(frozen=True)
class Unusable:
    """A sample that cannot be read or prepared."""

    index: int
    error: FlmmError


@dataclass(frozen=True)
class ExampleBatch:
    """A batch; only `inputs` are collated, by the feature source."""

    inputs: Any
    truths: tuple[Tensor, ...]
    samples: tuple[Sample, ...]
    indices: tuple[int, ...] = ()

    def pin_memory(self) -> ExampleBatch:
        """The same with page-locked tensors; called by the DataLoader."""
        truths = tuple(truth.pin_memory() for truth in self.truths)
        return replace(self, inputs=self.inputs.pin_memory(), truths=truths)


class ExampleDataset(Dataset["Example | Unusable"]):
    """Reads and prepares one sample at a time, without weights or randomness.

    The error of a broken sample is returned: raised in a DataLoader worker, it would become a
    traceback.

    Attributes:
        fill: Put the next sample in place of one that cannot be used, so that the batches of
            training keep their size.
    """

    def __init__(
        self, samples: Sequence[Sample], source: FeatureSource, *, fill: bool = False
    ) -> None:
        self.samples = samples
        self.source = source
        self.fill = fill

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Example | Unusable:
        try:
            return self.example(index)
        except FlmmError as error:
            return Unusable(index, error)

    def example(self, index: int) -> Example:
        """One sample; `FlmmError` if it cannot be used."""
        sample = self.samples[index]
        inputs = self.source.prepare(sample)
        masks = [rle.decode(phrase.mask) for phrase in sample.phrases]
        truth = torch.stack([torch.from_numpy(mask) for mask in masks]).bool()
        return Example(inputs, truth, sample, index)

    def collate(self, examples: list[Example | Unusable]) -> Loaded:
        """The batch of some samples, and those that cannot be used."""
        unusable = [example for example in examples if isinstance(example, Unusable)]
        usable = [example for example in examples if isinstance(example, Example)]
        for lost in tuple(unusable) if self.fill else ():
            for further in range(1, min(TRIES, len(self))):
                other = self[(lost.index + further) % len(self)]
                if isinstance(other, Example):
                    usable.append(other)
                    break
                unusable.append(other)
        if not usable:
            return None, tuple(unusable)
        batch = ExampleBatch(
            inputs=self.source.collate([example.inputs for example in usable]),
            truths=tuple(example.truth for example in usable),
            samples=tuple(example.sample for example in usable),
            indices=tuple(example.index for example in usable),
        )
        return batch, tuple(unusable)


Batches = Sampler[list[int]] | Sequence[list[int]]
"""The indices of each batch."""
Loaded = tuple[ExampleBatch | None, tuple[Unusable, ...]]
"""The usable samples of a batch, None if there are none, and the unusable ones."""


def count_workers(workers: Workers, device: torch.device) -> int:
    """The number of DataLoader workers for a model on `device`; 0 reads in the main process.

    "auto" is 0 on the CPU; otherwise all usable CPUs but one, divided among the processes that
    `torchrun` starts on this machine, 1 to `MOST`: a model on the CPU keeps all cores busy itself
    (`python -m performance loading` measures both).
    """
    if workers != "auto":
        return workers
    if device.type == "cpu":
        return 0
    fellows = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    return max(1, min(MOST, usable_cpus() // fellows - 1))


def load_batches(
    dataset: ExampleDataset,
    *,
    batch_size: int = 1,
    sampler: Batches | None = None,
    workers: Workers = 0,
    left_out: LeftOut | None = None,
) -> Generator[ExampleBatch, None, None]:
    """As `read_batches`, but passes unusable samples to `left_out`, or raises the first error.

    Without `sampler`: all samples in order, `batch_size` at a time.
    """
    if sampler is None:
        sampler = fixed_batches(len(dataset), batch_size)
    for batch, unusable in read_batches(dataset, sampler, workers=workers):
        for lost in unusable:
            if left_out is None:
                raise lost.error
            left_out.add(lost.index, str(lost.error))
        if batch is None and dataset.fill:
            raise unusable[0].error
        if batch is not None:
            yield batch


def read_batches(
    dataset: ExampleDataset, sampler: Batches, *, workers: Workers = 0
) -> Generator[Loaded, None, None]:
    """The batches of `sampler`, with the samples that cannot be used.

    Workers (see `count_workers`) prefetch two batches each and end with this generator, at the
    latest when it is closed.

    Raises:
        RunError: A worker died.
    """
    device = dataset.source.device
    loader: DataLoader[Any] = DataLoader(
        dataset,
        num_workers=count_workers(workers, device),
        collate_fn=dataset.collate,
        pin_memory=device.type == "cuda",
        batch_sampler=sampler,
        worker_init_fn=_start_worker,
    )
    iterator = iter(loader)
    try:
        yield from iterator
    except (RuntimeError, ConnectionError, EOFError) as error:
        raise dead_worker_error(error) or error from error
    finally:
        # Otherwise they would live as long as the traceback of an error.
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()


def _start_worker(worker: int) -> None:
    # Ctrl-C also reaches workers, but the main process decides when they end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # By default each of a batch's hundred tensors keeps a file descriptor open.
    set_sharing_strategy("file_system")
