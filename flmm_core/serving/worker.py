"""The thread that owns the models: requests wait for it in a queue and are grounded in batches."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flmm_core.pipeline.grounder import Grounder, Prepared
from flmm_core.serving.limits import Limits
from flmm_core.serving.refusals import RefusalError, busy

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(eq=False)
class Job:
    """Something that the thread does; with a grounder, `run` prepares what shares a forward."""

    run: Callable[[], Any]
    grounder: Grounder | None = None
    future: Future[Any] = field(default_factory=Future)


class Worker:
    """Runs what needs a model, one thing at a time; phrases of several requests in one forward.

    Attributes:
        grounded: Called after each batch with the numbers of its requests and phrases.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.grounded: Callable[[int, int], None] = lambda requests, phrases: None
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._arriving = 0
        self._seconds = 0.1  # of a job, lately
        self._stopping = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._work, name="flmm-worker", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread after what runs; what still waits is refused."""
        with self._changed:
            self._stopping = True
            for job in self._jobs:
                job.future.cancel()
            self._jobs.clear()
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout=self.limits.stop_seconds)

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._jobs)

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """While a request is read that will be grounded, so that a batch may wait for it."""
        with self._changed:
            self._arriving += 1
        try:
            yield
        finally:
            with self._changed:
                self._arriving -= 1
                self._changed.notify_all()

    def enqueue_ground(self, grounder: Grounder, prepare: Callable[[], Prepared]) -> Job:
        """Let what `prepare` gives be grounded, in a batch with other requests to the grounder.

        Raises:
            RefusalError: 429 if too many wait, 503 if the server is stopping.
        """
        return self._enqueue(Job(prepare, grounder))

    async def call(self, function: Callable[[], Value]) -> Value:
        """What a function that needs a model returns; raises as `enqueue_ground` and `outcome`."""
        value: Value = await self.outcome(self._enqueue(Job(function)))
        return value

    async def iterate(self, make: Callable[[], Iterable[Value]]) -> AsyncIterator[Value]:
        """What an iterable that needs a model gives, as it comes; raises as `call`.

        Leaving the loop stops it after the item that it is at.
        """
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()
        left = threading.Event()

        def put(kind: str, value: Any = None) -> None:
            loop.call_soon_threadsafe(queue.put_nowait, (kind, value))

        def run() -> None:
            put("begin")
            deadline = time.monotonic() + self.limits.run_seconds
            with closing(_generator(make)) as values:
                for value in values:
                    if left.is_set():
                        return
                    put("value", value)
                    if time.monotonic() > deadline:
                        raise _too_long()

        job = Job(run)
        job.future.add_done_callback(lambda _: put("end"))
        self._enqueue(job)
        try:
            async with asyncio.timeout(self.limits.wait_seconds):
                kind, value = await queue.get()
        except TimeoutError:
            job.future.cancel()
            raise self._waited() from None
        try:
            while kind != "end":
                if kind == "value":
                    yield value
                kind, value = await queue.get()
            if job.future.cancelled():
                raise _stopped()
            job.future.result()
        finally:
            left.set()
            job.future.cancel()

    async def outcome(self, job: Job) -> Any:
        """What a job gives: a `Result`, if it grounds; leaving early cancels it.

        Raises:
            RefusalError: 503 after too long a wait, 504 after too long a run.
        """
        future = asyncio.wrap_future(job.future)
        try:
            await asyncio.wait([future], timeout=self.limits.wait_seconds)
            if not future.done() and job.future.cancel():
                raise self._waited()
            if not future.done():
                await asyncio.wait([future], timeout=self.limits.run_seconds)
            if not future.done():
                raise _too_long()
            if future.cancelled():
                raise _stopped()
            return future.result()
        finally:  # the client is gone, or has waited too long
            job.future.cancel()

    def _enqueue(self, job: Job) -> Job:
        with self._changed:
            if self._stopping or not self.alive:
                raise _stopped()
            if len(self._jobs) >= self.limits.queue:
                wait = len(self._jobs) * self._seconds
                raise busy(f"{len(self._jobs)} requests are waiting already.", wait)
            self._jobs.append(job)
            self._changed.notify_all()
        return job

    def _waited(self) -> RefusalError:
        wait = max(1, round(len(self._jobs) * self._seconds))
        return RefusalError(
            503,
            f"The model was busy for {self.limits.wait_seconds:g} seconds.",
            headers={"Retry-After": str(wait)},
        )

    # --- in the thread ----------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                if self._stopping:
                    return
                job = self._jobs.popleft()
            if not job.future.set_running_or_notify_cancel():
                continue
            start = time.monotonic()
            done = 1
            if job.grounder is None:
                _settle(job, job.run)
            else:
                done = self._ground(job, job.grounder)
            taken = (time.monotonic() - start) / done
            self._seconds += 0.1 * (taken - self._seconds)

    def _ground(self, first: Job, grounder: Grounder) -> int:
        """Ground a job and those that can share its forward; returns how many they are."""
        batch: list[tuple[Job, Prepared]] = []
        deadline = time.monotonic() + self.limits.gather_seconds
        job: Job | None = first
        count = 0
        while job is not None:
            try:
                prepared = job.run()
                batch.append((job, prepared))
                count += len(prepared.samples)
            except BaseException as error:  # of this request alone
                job.future.set_exception(error)
            room = count < self.limits.batch_phrases
            job = self._companion(grounder, deadline) if room else None
        if batch:
            self._answer(batch, grounder)
            self.grounded(len(batch), count)
        return max(1, len(batch))

    def _companion(self, grounder: Grounder, deadline: float) -> Job | None:
        """The next job of a grounder; waits for one that is arriving."""
        with self._changed:
            while True:
                for job in [job for job in self._jobs if job.grounder is grounder]:
                    self._jobs.remove(job)
                    if job.future.set_running_or_notify_cancel():
                        return job
                left = deadline - time.monotonic()
                if not self._arriving or left <= 0 or self._stopping:
                    return None
                self._changed.wait(left)

    def _answer(self, batch: list[tuple[Job, Prepared]], grounder: Grounder) -> None:
        most = self.limits.batch_phrases
        try:
            found = grounder.ground_prepared([each for _, each in batch], batch_size=most)
        except BaseException as error:
            if len(batch) == 1:
                batch[0][0].future.set_exception(error)
                return
            logger.warning("a batch of %d requests failed (%s); each runs alone", len(batch), error)
            for single in batch:
                self._answer([single], grounder)
            return
        for (job, _), result in zip(batch, found, strict=True):
            job.future.set_result(result)


def _generator(make: Callable[[], Iterable[Value]]) -> Generator[Value, None, None]:
    yield from make()


def _settle(job: Job, run: Callable[[], Any]) -> None:
    try:
        value = run()
    except BaseException as error:
        job.future.set_exception(error)
    else:
        job.future.set_result(value)


def _too_long() -> RefusalError:
    return RefusalError(504, "The model did not finish in time.")


def _stopped() -> RefusalError:
    return RefusalError(503, "The server is stopping.", headers={"Retry-After": "5"})
