"""Batch samplers: random orders that a resumed run continues exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Sampler

from flmm_core.data.protocols import LazySamples
from flmm_core.data.sample import Sample
from flmm_core.world import World, part

T = TypeVar("T")

POOL = 50
"""Number of batches whose samples are sorted together: larger means less padding and mixing."""
POOLS = 4
"""Minimum number of pools per epoch: in a single one the same samples would always meet."""
STEPS = 8
"""Sizes and aspect ratios are rounded to this many steps per octave (9 % each)."""


def spread(items: Sequence[T], most: int) -> list[T]:
    """At most `most` of the items, spread evenly, in order."""
    places = np.linspace(0, len(items) - 1, min(most, len(items))).round().astype(int)
    return [items[place] for place in np.unique(places).tolist()]


class StepSampler(Sampler[list[int]]):
    """The samples of each step, determined by seed and step alone, so runs resume exactly.

    Every epoch is a new permutation; a batch may span two epochs.
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
        """All samples once, in the order of one epoch."""
        chance = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        order: list[int] = torch.randperm(self.total, generator=chance).tolist()
        return order


def fixed_batches(total: int, batch_size: int) -> list[list[int]]:
    """The batches of `total` samples in their own order."""
    return [
        list(range(start, min(start + batch_size, total))) for start in range(0, total, batch_size)
    ]


def image_batches(samples: Sequence[Sample], total: int, batch_size: int) -> list[list[int]]:
    """The first `total` samples in their own order, at most `batch_size` at a time.

    Samples of one image are in one batch, where the models see it once, unless they are too many.
    """
    if not isinstance(samples, LazySamples):
        return fixed_batches(total, batch_size)
    batches: list[list[int]] = []
    for _, members in groupby(range(total), samples.image):
        group = list(members)
        for start in range(0, len(group), batch_size):
            some = group[start : start + batch_size]
            if not batches or len(batches[-1]) + len(some) > batch_size:
                batches.append([])
            batches[-1] += some
    return batches


def sample_extents(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """(len(samples), 3) height and width in pixels, and characters of the caption."""
    if isinstance(samples, LazySamples):
        rows = [samples.extent(index) for index in range(len(samples))]
    else:
        rows = [(*sample.image_hw, len(sample.caption)) for sample in samples]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


class BucketSampler(StepSampler):
    """As `StepSampler`, but with less padding: batches of similar grids and caption lengths.

    The image size determines the grid of every view, and the caption length most of the other
    tokens, so no image has to be read.

    Within each pool of `POOL` batches of an epoch's permutation the samples are sorted by aspect
    ratio, size and caption length, and cut into batches; the batches of an epoch are shuffled.
    A batch that spans two epochs stays as it is. `extents` are from `sample_extents`.
    """

    def __init__(
        self, extents: NDArray[np.int64], batch_size: int, steps: range, seed: int
    ) -> None:
        super().__init__(len(extents), batch_size, steps, seed)
        height, width, self._characters = extents.T
        # Stable, and equal for equal sizes, so ties keep the permutation's order.
        self._aspect = np.round(STEPS * np.log2(height / width))
        self._size = np.round(STEPS * np.log2(height * width))

    def _order(self, epoch: int) -> list[int]:
        order = np.array(super()._order(epoch), dtype=np.int64)
        begun = -epoch * self.total % self.batch_size  # these end a batch of the last epoch
        batches = max(0, (self.total - begun) // self.batch_size)
        whole = batches * self.batch_size
        middle = order[begun : begun + whole]
        pool = max(1, min(POOL, batches // POOLS)) * self.batch_size
        for start in range(0, whole, pool):
            part = middle[start : start + pool]
            keys = self._characters[part], self._size[part], self._aspect[part]
            middle[start : start + pool] = part[np.lexsort(keys)]
        chance = torch.Generator().manual_seed(self.seed * 100_003 + epoch)
        shuffled = torch.randperm(batches, generator=chance).numpy()
        rows = middle.reshape(-1, self.batch_size)[shuffled]
        order[begun : begun + whole] = rows.reshape(-1)
        return [int(index) for index in order]


class SharedSampler(Sampler[list[int]]):
    """This process's share of each step's samples, in `accumulate` parts one after the other.

    All shares of a step are the batch of `sampler`, however many processes there are. With fewer
    samples than parts some are empty.
    """

    def __init__(self, sampler: StepSampler, world: World, accumulate: int = 1) -> None:
        self.sampler, self.world, self.accumulate = sampler, world, accumulate

    def __len__(self) -> int:
        return len(self.sampler) * self.accumulate

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.sampler:
            share = self.world.share(batch)
            for number in range(self.accumulate):
                yield part(share, number, self.accumulate)
