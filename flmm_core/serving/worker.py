"""The thread that owns the models: requests wait for it in a queue and are grounded in batches.

Another thread prepares requests in the order in which they came, so that the model finds the next
batch ready. What the model does alone (an answer in words) passes through the same queue.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Generator, Iterable, Iterator
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from flmm_core.pipeline.grounder import Grounder, Prepared
from flmm_core.serving.limits import Limits
from flmm_core.serving.refusals import RefusalError, busy, stopping

logger = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(eq=False)
class Job:
    """Something that needs a model; with a grounder, `run` prepares what shares a forward."""

    run: Callable[[], Any]
    grounder: Grounder | None = None
    prepared: Prepared | None = None
    future: Future[Any] = field(default_factory=Future)

    @property
    def phrases(self) -> int:
        """How many places of a batch it takes."""
        return len(self.prepared.samples) if self.prepared else 0


class Worker:
    """Runs what needs a model, one thing at a time; phrases of several requests in one forward.

    Attributes:
        grounded: Called after each batch with the numbers of its requests and phrases.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.grounded: Callable[[int, int], None] = lambda requests, phrases: None
        self._changed = threading.Condition()
        self._came: deque[Job] = deque()
        self._ready: deque[Job] = deque()
        self._arriving = 0  # requests that will be ready soon
        self._processors = threading.Lock()  # tokenizers may not be used by two threads
        self._seconds = 0.1  # of a job, lately
        self._stopping = False
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the threads."""
        for work in (self._prepare, self._work):
            self._threads.append(threading.Thread(target=work, name="flmm-worker", daemon=True))
            self._threads[-1].start()

    def stop(self) -> None:
        """End the threads after what runs; what still waits is refused."""
        with self._changed:
            self._stopping = True
            for job in [*self._came, *self._ready]:
                job.future.cancel()
            self._came.clear()
            self._ready.clear()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(timeout=1)

    @property
    def busy(self) -> bool:
        """Whether a thread still runs that has been told to stop."""
        return self._stopping and any(thread.is_alive() for thread in self._threads)

    @property
    def alive(self) -> bool:
        """Whether the threads run."""
        return bool(self._threads) and all(thread.is_alive() for thread in self._threads)

    @property
    def waiting(self) -> int:
        """How many jobs wait."""
        return len(self._came) + len(self._ready)

    @contextmanager
    def arriving(self) -> Iterator[None]:
        """While the image of a request is decoded, so that a batch may wait for it."""
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

    async def iterate(self, make: Callable[[], Iterable[Value]]) -> AsyncGenerator[Value, None]:
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
                raise stopping()
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
                raise stopping()
            return future.result()
        finally:  # the client is gone, or has waited too long
            job.future.cancel()

    def _enqueue(self, job: Job) -> Job:
        with self._changed:
            if self._stopping or not self.alive:
                raise stopping()
            if self.waiting >= self.limits.queue or self._wait() > self.limits.wait_seconds * 0.7:
                raise busy(f"{self.waiting} requests are waiting already.", self._wait())
            self._came.append(job)
            self._changed.notify_all()
        return job

    def _wait(self) -> float:
        """Seconds until the queue may be empty."""
        return self.waiting * self._seconds

    def _waited(self) -> RefusalError:
        return RefusalError(
            503,
            f"The model was busy for {self.limits.wait_seconds:g} seconds.",
            headers={"Retry-After": str(max(1, round(self._wait())))},
        )

    # --- in the preparing thread ------------------------------------------------------------

    def _prepare(self) -> None:
        while True:
            with self._changed:
                while not self._stopping and (not self._came or self._full()):
                    self._changed.wait()
                if self._stopping:
                    return
                job = self._came.popleft()
                self._arriving += 1
            try:
                if job.grounder is not None and not job.future.cancelled():
                    with self._processors:
                        job.prepared = job.run()
                kept = True
            except BaseException as error:  # of this request alone
                kept = False
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(error)
            with self._changed:
                self._arriving -= 1
                if kept:
                    self._ready.append(job)
                self._changed.notify_all()
            del job

    def _full(self) -> bool:
        """Whether another batch is ready: what is prepared takes memory."""
        return sum(job.phrases for job in self._ready) >= self.limits.batch_phrases

    # --- in the thread of the models --------------------------------------------------------

    def _work(self) -> None:
        while (batch := self._next()) is not None:
            start = time.monotonic()
            if batch[0].grounder is None:
                with self._processors:
                    _settle(batch[0])
            else:
                self._ground(batch, batch[0].grounder)
                self.grounded(len(batch), sum(job.phrases for job in batch))
            taken = (time.monotonic() - start) / len(batch)
            self._seconds += 0.2 * (taken - self._seconds)
            del batch

    def _next(self) -> list[Job] | None:
        """The first job that is ready, and those that can share its forward; None at the end."""
        batch: list[Job] = []
        room = self.limits.batch_phrases
        deadline = 0.0
        with self._changed:
            while not self._stopping:
                for job in [*self._ready] if room > 0 else []:
                    alike = not batch or job.grounder is batch[0].grounder is not None
                    if alike and room > 0:
                        self._ready.remove(job)
                        if job.future.set_running_or_notify_cancel():
                            batch.append(job)
                            room -= job.phrases
                self._changed.notify_all()
                if not batch:
                    self._changed.wait()
                    continue
                deadline = deadline or time.monotonic() + self.limits.gather_seconds
                left = deadline - time.monotonic()
                alone = batch[0].grounder is None
                if alone or room <= 0 or not (self._arriving or self._came) or left <= 0:
                    return batch
                self._changed.wait(left)
            for job in batch:
                job.future.set_exception(stopping())
            return None

    def _ground(self, batch: list[Job], grounder: Grounder) -> None:
        prepared = [job.prepared for job in batch if job.prepared]
        try:
            found = grounder.ground_prepared(prepared, batch_size=self.limits.batch_phrases)
        except BaseException as error:
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            logger.warning("a batch of %d requests failed (%s); each runs alone", len(batch), error)
            for job in batch:
                self._ground([job], grounder)
            return
        for job, result in zip(batch, found, strict=True):
            job.future.set_result(result)


def _generator(make: Callable[[], Iterable[Value]]) -> Generator[Value, None, None]:
    yield from make()


def _settle(job: Job) -> None:
    try:
        value = job.run()
    except BaseException as error:
        job.future.set_exception(error)
    else:
        job.future.set_result(value)


def _too_long() -> RefusalError:
    return RefusalError(504, "The model did not finish in time.")
