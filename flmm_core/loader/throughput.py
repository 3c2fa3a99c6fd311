"""How fast samples go through, and whether the model waits for them."""

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
    """What went through in some seconds.

    Attributes:
        seconds: Wall-clock time, without pauses.
        images: How many; one that several samples of a batch share counts once.
        phrases: How many.
        waited: Seconds of them that nothing was computed in, for want of data.
    """

    seconds: float
    pictures: int
    phrases: int
    waited: float

    @property
    def pictures_per_second(self) -> float:
        return self.pictures / max(self.seconds, 1e-9)

    @property
    def phrases_per_second(self) -> float:
        return self.phrases / max(self.seconds, 1e-9)

    @property
    def share_waiting(self) -> float:
        """From 0, the data were always there, to 1."""
        return min(1.0, self.waited / max(self.seconds, 1e-9))

    def figures(self) -> dict[str, float | str]:
        """To be shown beside a stage's count."""
        return {
            "pictures/s": self.pictures_per_second,
            "phrases/s": self.phrases_per_second,
            "waiting for data": f"{100 * self.share_waiting:.0f} %",
        }

    def to_dict(self) -> dict[str, float]:
        """Ready for JSON; the share is a fraction of 1."""
        return {
            "pictures_per_second": round(self.pictures_per_second, 2),
            "phrases_per_second": round(self.phrases_per_second, 2),
            "share_waiting_for_data": round(self.share_waiting, 3),
        }


class Throughput:
    """Counts, from its making or the last `lap` on.

    Args:
        clock: Seconds, rising.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._last: Rates | None = None
        self._restart()

    def _restart(self) -> None:
        self._start, self._waited = self.clock(), 0.0
        self._images = self._phrases = 0

    def waiting(self, batches: Iterable[T]) -> Iterator[T]:
        """The same batches; what each is waited for is counted."""
        iterator = iter(batches)
        while True:
            before = self.clock()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            finally:
                self._waited += self.clock() - before
            yield batch

    def count(self, samples: Sequence[Sample]) -> None:
        """One batch went through."""
        self._images += len({sample.image_path for sample in samples})
        self._phrases += sum(len(sample.phrases) for sample in samples)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """What happens meanwhile is other work."""
        before = self.clock()
        yield
        self._start += self.clock() - before

    def rates(self) -> Rates:
        """Since the last lap."""
        seconds = self.clock() - self._start
        return Rates(seconds, self._images, self._phrases, self._waited)

    def lap(self) -> Rates:
        """Since the last lap; the next one begins."""
        self._last = self.rates()
        self._restart()
        return self._last

    def figures(self) -> dict[str, float | str]:
        """Of the last whole lap, or else since the start: to be shown beside a stage's count."""
        return (self._last or self.rates()).figures()
