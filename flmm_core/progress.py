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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import Any, Self

import rich.console
import rich.progress
from rich.cells import cell_len, chop_cells
from rich.text import Text

WIDTH = 80
"""Columns of a line in a log."""
NAME = 20
"""Columns of a stage's name that are worth more than figures."""
BAR = 8
"""Columns of a bar on a terminal."""


class Stage:
    """Counts the steps of one stage; `show` receives the number of new steps and the figures."""

    def __init__(
        self, show: Callable[[int, Sequence[str]], object] = lambda count, figures: None
    ) -> None:
        self._show = show

    def advance(self, count: int = 1, **figures: float | str) -> None:
        """Count steps as done; `figures` (loss, cIoU, ...) are shown beside the count.

        The most important come first: those that a line has no room for are left out.
        """
        texts = {k: v if isinstance(v, str) else f"{v:.4g}" for k, v in figures.items()}
        self._show(count, [f"{name} {text}" for name, text in texts.items()])


def fitted(name: str, count: str, facts: Sequence[str], width: int = WIDTH) -> str:
    """A line "name: count, fact, fact" of at most `width` columns.

    A long name loses its middle, but not below `NAME` columns for the sake of the facts; facts are
    left out from the first one on that does not fit.
    """
    name, room = " ".join(name.split()), width - cell_len(count) - 2
    wanted = sum(cell_len(fact) + 2 for fact in facts)
    name = _cut(name, max(min(room, max(room - wanted, NAME)), 1))
    line = f"{name}: {count}"
    for fact in facts:
        if cell_len(line) + cell_len(fact) + 2 > width:
            break
        line = f"{line}, {fact}"
    return _cut(line, width)


def _cut(text: str, width: int) -> str:
    """At most `width` columns of a text, of which a long one loses its middle."""
    if cell_len(text) <= width:
        return text
    start, end = (width - 1) // 2, width // 2
    head = chop_cells(text, start)[0] if start else ""
    tail = chop_cells(text[::-1], end)[0][::-1] if end else ""
    return f"{head}…{tail}"


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
        before = done
        ending: Sequence[str] = ()
        start = written = self.clock()

        def show(count: int, figures: Sequence[str]) -> None:
            nonlocal done, ending, written
            done, ending, now = done + count, figures, self.clock()
            if now - written >= self.every and done < total:
                written = now
                left = duration((now - start) / max(done - before, 1) * (total - done))
                self.write(fitted(name, f"{done}/{total}, {left} left", ending))

        yield Stage(show)
        taken = f"{done}/{total} in {duration(self.clock() - start)}"
        self.write(fitted(name, taken, ending))

    def say(self, text: str) -> None:
        self.write(text)


class _Line(rich.progress.ProgressColumn):
    """What a line of a log says, as wide as the terminal allows."""

    def __init__(self, console: rich.console.Console) -> None:
        super().__init__()
        self.console = console

    def render(self, task: rich.progress.Task) -> Text:
        count = f"{task.completed:.0f}/{task.total:.0f}"
        if task.finished:
            count += f" in {duration(task.finished_time or 0)}"
        elif task.time_remaining is not None:
            count += f", {duration(task.time_remaining)} left"
        width = max(self.console.width - BAR - 1, 1)
        return Text(fitted(task.description, count, task.fields["figures"], width), no_wrap=True)


class TerminalProgress(Progress):
    """Shows a bar with the remaining time on a terminal."""

    def __init__(self, console: rich.console.Console) -> None:
        self.console = console

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        columns = rich.progress.BarColumn(bar_width=BAR), _Line(self.console)
        with rich.progress.Progress(*columns, console=self.console) as bars:
            task = bars.add_task(name, total=total, completed=done, figures=())
            yield Stage(lambda count, figures: bars.update(task, advance=count, figures=figures))

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)


def duration(seconds: float) -> str:
    """Hours, minutes and seconds: "1:02:05"."""
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
