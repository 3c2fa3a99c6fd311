"""Batches of samples that are alike, so that little of a batch is padding.

A sample's shape is known before its image is read: the size of the image decides the grid of
every view, and the length of the caption most of the tokens beside it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from flmm_core.data.protocols import LazySamples
from flmm_core.data.sample import Sample
from flmm_core.loader.dataset import StepSampler

POOL = 50
"""Batches whose samples are sorted among each other: more pad less, but mix less."""
POOLS = 4
"""Into at least so many a pass is parted: in a single one the same samples would always meet."""
STEPS = 8
"""Sizes and aspects are told apart in so many steps an octave (9 % each)."""


def sample_extents(samples: Sequence[Sample]) -> NDArray[np.int64]:
    """(len(samples), 3) height and width in pixels, and characters of the caption."""
    if isinstance(samples, LazySamples):
        rows = [samples.extent(index) for index in range(len(samples))]
    else:
        rows = [(*sample.image_hw, len(sample.caption)) for sample in samples]
    return np.array(rows, dtype=np.int64).reshape(-1, 3)


class BucketSampler(StepSampler):
    """As `StepSampler`, but batches hold samples of like grids and caption lengths.

    Which samples go together still follows from the seed and the step alone, and every pass holds
    every sample once: within `POOL` batches of a pass's permutation the samples are sorted by
    aspect, size and length of caption, cut into batches, and the batches of a pass are shuffled.
    A batch that reaches from one pass into the next stays as it is.

    Args:
        extents: (total, 3) as `sample_extents` gives them.
        batch_size: Samples of a step.
        steps: Which steps.
        seed: Decides the order.
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
        begun = -epoch * self.total % self.batch_size  # the last pass's last batch ends with these
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
