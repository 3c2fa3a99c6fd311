"""Long-running work: how far it is, and how it is stopped.

Library code is given a `Progress` and never prints: the command line chooses a bar on a terminal
or plain lines elsewhere, and the default shows nothing.

    with progress.stage("Training", total=steps) as stage:
        for step in range(steps):
            ...
            stage.advance(loss=loss)
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Self

import rich.console
import rich.progress


class Stage:
    """Counts the steps of one stage; `show` receives the number of new steps and the figures."""

    def __init__(self, show: Callable[[int, str], object] = lambda count, figures: None) -> None:
        self._show = show

    def advance(self, count: int = 1, **figures: float | str) -> None:
        """Count steps as done; `figures` (loss, cIoU, ...) are shown beside the count."""
        texts = {k: v if isinstance(v, str) else f"{v:.4g}" for k, v in figures.items()}
        self._show(count, ", ".join(f"{name} {text}" for name, text in texts.items()))


class Progress:
    """Receives progress updates; this base class shows nothing."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        """A stage of `total` steps, `done` of them in an earlier run."""
        yield Stage()

    def say(self, text: str) -> None:
        """Show a line of text, between or within stages."""


class LineProgress(Progress):
    """Writes a line of each stage `every` few seconds, without its line end, for logs and pipes."""

    def __init__(
        self,
        write: Callable[[str], object],
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.write, self.every, self.clock = write, every, clock

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        before, ending = done, ""
        start = written = self.clock()

        def show(count: int, figures: str) -> None:
            nonlocal done, ending, written
            done, ending, now = done + count, figures and f", {figures}", self.clock()
            if now - written >= self.every and done < total:
                written = now
                left = _duration((now - start) / max(done - before, 1) * (total - done))
                self.write(f"{name}: {done}/{total}, {left} left{ending}")

        yield Stage(show)
        self.write(f"{name}: {done}/{total} in {_duration(self.clock() - start)}{ending}")

    def say(self, text: str) -> None:
        self.write(text)


class TerminalProgress(Progress):
    """Shows a bar with the remaining time on a terminal."""

    def __init__(self, console: rich.console.Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(bar_width=24),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeElapsedColumn(),
            rich.progress.TextColumn("left"),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.fields[figures]}", markup=False),
        )
        with rich.progress.Progress(*columns, console=self.console) as bars:
            task = bars.add_task(name, total=total, completed=done, figures="")
            yield Stage(lambda count, figures: bars.update(task, advance=count, figures=figures))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def _duration(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


class StopRequest:
    """Delays Ctrl-C and SIGTERM until the end of a step, so that its work can be saved.

    Within the `with` block the first signal only sets `asked`; a second one raises
    KeyboardInterrupt. Outside the main thread, where Python handles no signals, nothing changes.
    """

    def __init__(self) -> None:
        self.asked = False
        self._immediate = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    @contextmanager
    def immediate(self) -> Iterator[None]:
        """Let the first signal raise, too, while there is nothing to save."""
        if self.asked:  # a moment ago, after the last look
            raise KeyboardInterrupt
        self._immediate = True
        try:
            yield
        finally:
            self._immediate = False

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self._immediate:
            raise KeyboardInterrupt
        self.asked = True
