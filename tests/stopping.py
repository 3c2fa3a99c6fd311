"""A progress display that sends Ctrl-C, so that a test stops a job exactly where it wants."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

from flmm_core.progress import Progress, Stage


class StopAt(Progress):
    """Sends Ctrl-C as soon as `stage` has counted `count` units."""

    def __init__(self, stage: str, count: int) -> None:
        self.stage_name = stage
        self.count = count

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        counted = 0

        def show(count: int, figures: str) -> None:
            nonlocal counted
            counted += count
            if name == self.stage_name and counted == self.count:
                signal.raise_signal(signal.SIGINT)

        yield Stage(show)
