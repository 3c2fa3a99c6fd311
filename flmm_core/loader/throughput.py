"""Measures throughput, and whether the model waits for data."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from flmm_core.data.sample import Sample

T = TypeVar("T")


@dataclass(frozen=True)
class Rates:
    """The throughput of an interval.

    Attributes:
        images_per_second: An image that samples of a batch share counts once.
        waiting: Fraction of the time spent waiting for data.
    """

    images_per_second: float
    phrases_per_second: float
    waiting: float

    def figures(self) -> dict[str, float | str]:
        """For `Stage.advance`; waiting is for data."""
        return {
            "images/s": f"{self.images_per_second:.3g}",
            "waiting": f"{100 * self.waiting:.0f} %",
            "phrases/s": f"{self.phrases_per_second:.3g}",
        }

    def to_dict(self) -> dict[str, float]:
        """Ready for JSON."""
        return {
            "pictures_per_second": round(self.images_per_second, 2),
            "phrases_per_second": round(self.phrases_per_second, 2),
            "share_waiting_for_data": round(self.waiting, 3),
        }


def count_images(samples: Sequence[Sample]) -> int:
    """Number of different images."""
    return len({sample.image_path for sample in samples})


class Throughput:
    """Counts since its creation or the last `lap`; `clock` returns seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._last: Rates | None = None
        self._restart()

    def _restart(self) -> None:
        self._start, self._waited = self.clock(), 0.0
        self._images = self._phrases = 0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; the time until each arrives counts as waiting."""
        before = self.clock()
        for batch in batches:
            self._waited += self.clock() - before
            yield batch
            before = self.clock()
        self._waited += self.clock() - before

    def count(self, samples: Sequence[Sample]) -> None:
        """Count a batch."""
        self.add(count_images(samples), sum(len(sample.phrases) for sample in samples))

    def add(self, images: int, phrases: int) -> None:
        """Count images and phrases, perhaps those of several processes."""
        self._images += images
        self._phrases += phrases

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Exclude the time of this block."""
        before = self.clock()
        yield
        self._start += self.clock() - before

    def rates(self) -> Rates:
        """Since the last lap."""
        seconds = max(self.clock() - self._start, 1e-9)
        waiting = min(1.0, self._waited / seconds)
        return Rates(self._images / seconds, self._phrases / seconds, waiting)

    def lap(self) -> Rates:
        """Since the last lap; begins the next one."""
        self._last = self.rates()
        self._restart()
        return self._last

    def figures(self) -> dict[str, float | str]:
        """Of the last complete lap, or since the start; for `Stage.advance`."""
        return (self._last or self.rates()).figures()
