"""How far a long piece of work is: a bar on a terminal, plain lines elsewhere, nothing by default.

Library code is handed a `Progress` and never prints; the command line decides which one.

    with progress.stage("Training", total=steps) as stage:
        for step in range(steps):
            ...
            stage.advance(loss=loss)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import rich.console
import rich.progress


class Stage:
    """Counts one piece of work; this one keeps it to itself."""

    def advance(self, count: int = 1, **figures: float | str) -> None:
        """So many more are done; `figures` (loss, cIoU, ...) are shown beside the count."""


class Progress:
    """Is told what a run does; this one keeps it to itself."""

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        """A piece of work of `total` steps, `done` of them in an earlier run."""
        yield Stage()

    def say(self, text: str) -> None:
        """A line for the reader, between or within stages."""


class LineProgress(Progress):
    """A line every few seconds: for logs and pipes.

    Args:
        write: Takes one line without its end.
        every: Seconds between two lines of a stage.
        clock: Seconds, rising.
    """

    def __init__(
        self,
        write: Callable[[str], object],
        every: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.write, self.every, self.clock = write, every, clock

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        stage = _LineStage(self, name, total, done)
        yield stage
        taken = _duration(self.clock() - stage.start)
        self.write(f"{name}: {stage.done}/{total} in {taken}{stage.figures}")

    def say(self, text: str) -> None:
        self.write(text)


class _LineStage(Stage):
    def __init__(self, progress: LineProgress, name: str, total: int, done: int) -> None:
        self.progress, self.name, self.total = progress, name, total
        self.done = self.before = done
        self.start = self.last_line = progress.clock()
        self.figures = ""

    def advance(self, count: int = 1, **figures: float | str) -> None:
        self.done += count
        self.figures = _figures(figures)
        now = self.progress.clock()
        if now - self.last_line < self.progress.every or self.done >= self.total:
            return
        self.last_line = now
        rate = (now - self.start) / max(self.done - self.before, 1)
        left = _duration(rate * (self.total - self.done))
        self.progress.write(f"{self.name}: {self.done}/{self.total}, {left} left{self.figures}")


class TerminalProgress(Progress):
    """A bar with the time left, on a terminal."""

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
            yield _BarStage(bars, bars.add_task(name, total=total, completed=done, figures=""))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


class _BarStage(Stage):
    def __init__(self, bars: rich.progress.Progress, task: rich.progress.TaskID) -> None:
        self.bars, self.task = bars, task

    def advance(self, count: int = 1, **figures: float | str) -> None:
        self.bars.update(self.task, advance=count, figures=_figures(figures).removeprefix(", "))


def _figures(figures: dict[str, float | str]) -> str:
    shown = {
        name: value if isinstance(value, str) else f"{value:.4g}" for name, value in figures.items()
    }
    return "".join(f", {name} {value}" for name, value in shown.items())


def _duration(seconds: float) -> str:
    minutes, whole = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{whole:02}" if hours else f"{minutes}:{whole:02}"
