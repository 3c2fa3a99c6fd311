"""Many images through one grounder: read ahead while the model runs, in full batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Generic, TypeVar

from flmm_core.errors import FlmmError
from flmm_core.images import to_image
from flmm_core.pipeline.grounder import Grounder, Prepared
from flmm_core.pipeline.result import Result

READERS = 4
"""Threads that read images. Decoders and resizing release Python's lock."""

Key = TypeVar("Key")


@dataclass(frozen=True)
class Asked(Generic[Key]):
    """Phrases to ground in one image; `read` gives the image, or raises an `FlmmError`."""

    key: Key
    read: Callable[[], object]
    phrases: tuple[str, ...]


def ground_each(
    grounder: Grounder,
    asked: Iterable[Asked[Key]],
    *,
    batch_size: int = 8,
    together: bool = False,
    readers: int = READERS,
) -> Iterator[tuple[Key, Result | FlmmError]]:
    """The result of each image, or why there is none, in order.

    As many images share a forward as have `batch_size` phrases together; the next ones are read
    and prepared meanwhile. No phrase is "not there" yet: see `Result.abstain`.

    Args:
        grounder: Runs in the caller's thread.
        asked: Is read a few batches ahead.
        batch_size: Most phrases at a time.
        together: As for `Grounder.ground`.
        readers: Threads that read images.
    """
    one_at_a_time = Lock()  # tokenizers do not like several threads

    def prepare(one: Asked[Key]) -> Prepared | FlmmError:
        try:
            image = to_image(one.read())
            with one_at_a_time:
                return grounder.prepare(image, one.phrases, together=together)
        except FlmmError as error:
            return error

    group: list[tuple[Key, Prepared | FlmmError]] = []
    size = 0
    with ThreadPoolExecutor(readers, "flmm-read") as pool:
        try:
            for key, one in _ahead(pool, prepare, asked, batch_size + readers):
                extra = 0 if isinstance(one, FlmmError) else len(one.samples)
                if size and size + extra > batch_size:
                    yield from _grounded(grounder, group, batch_size)
                    group, size = [], 0
                group.append((key, one))
                size += extra
            yield from _grounded(grounder, group, batch_size)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor,
    prepare: Callable[[Asked[Key]], Prepared | FlmmError],
    asked: Iterable[Asked[Key]],
    most: int,
) -> Iterator[tuple[Key, Prepared | FlmmError]]:
    """What `prepare` gives, in order, at most so many images ahead."""
    waiting: deque[tuple[Key, Future[Prepared | FlmmError]]] = deque()
    for one in asked:
        waiting.append((one.key, pool.submit(prepare, one)))
        if len(waiting) >= most:
            key, future = waiting.popleft()
            yield key, future.result()
    for key, future in waiting:
        yield key, future.result()


def _grounded(
    grounder: Grounder, group: list[tuple[Key, Prepared | FlmmError]], batch_size: int
) -> Iterator[tuple[Key, Result | FlmmError]]:
    """One forward for a group; after an error, one for each, so that only its cause is lost."""
    prepared = [one for _, one in group if isinstance(one, Prepared)]
    results: Iterator[Result | FlmmError]
    try:
        results = iter(grounder.ground_prepared(prepared, batch_size=batch_size))
    except FlmmError as error:
        results = iter([error])
        if len(prepared) > 1:
            results = (_alone(grounder, one, batch_size) for one in prepared)
    for key, one in group:
        yield key, one if isinstance(one, FlmmError) else next(results)


def _alone(grounder: Grounder, one: Prepared, batch_size: int) -> Result | FlmmError:
    try:
        return grounder.ground_prepared([one], batch_size=batch_size)[0]
    except FlmmError as error:
        return error
