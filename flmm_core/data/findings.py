"""Faults and skipped items of a data set: the first fault is raised, or all are collected.

Readers and `flmm data check` share one code: a reader wraps each part of its work that can fail by
itself into `with findings.part():`. Only `check` goes on after the first fault.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flmm_core.config import SkipLimit
from flmm_core.errors import DataError

logger = logging.getLogger(__name__)

Track = Callable[[Collection[Any]], Iterable[Any]]
"""Iterates over a collection and shows progress; `iter` shows none."""


SHOWN = 10
"""How many items left out are logged one by one."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item that is left out.

    Attributes:
        name: The item and its file.
        counts: Whether something is lost; an image that nothing was asked about is not.
    """

    name: str
    reason: str
    counts: bool = True


class DegenerateError(DataError):
    """An annotation that names something but marks no pixel, or marks pixels without naming them.

    It says neither where the thing is nor that it is absent, so it is left out, and is no fault.

    Args:
        name: The annotation and its file.
        reason: "it has no sentence".
    """

    def __init__(self, name: str, reason: str) -> None:
        self.name, self.reason = name, reason
        super().__init__(f"{name[:1].upper()}{name[1:]} cannot be used: {reason}.")

    def __reduce__(self) -> tuple[Any, ...]:
        return DegenerateError, (self.name, self.reason)


class Findings:
    """Skipped items of one source; with `keep_on` also its faults, else the first is raised."""

    def __init__(self, *, keep_on: bool = False) -> None:
        self.keep_on = keep_on
        self.faults: list[DataError] = []
        self.skipped: list[Skipped] = []
        self._told: set[str] = set()

    @contextmanager
    def part(self) -> Iterator[None]:
        """A part of the work whose failure leaves the other parts readable."""
        try:
            yield
        except DegenerateError as error:
            self.skip(error.name, error.reason)
        except DataError as error:
            if not self.keep_on:
                raise
            # Several records may refer to the same broken one.
            if str(error) not in self._told:
                self._told.add(str(error))
                self.faults.append(error)

    def skip(self, name: str, reason: str, *, counts: bool = True) -> None:
        """Leave an item out; with `counts=False` nothing is lost by it (see `Skipped`)."""
        self.skipped.append(Skipped(name, reason, counts))

    def warn(self, source: str) -> None:
        """Log the number of items left out, if any."""
        if self.skipped:
            first = f"the first is {self.skipped[0].name} ({self.skipped[0].reason})"
            hint = "`flmm data check` lists them"
            logger.warning("%s: %d left out, %s; %s", source, len(self.skipped), first, hint)


class LeftOut:
    """What a command leaves out of one source, until it is more than `--max-skipped` allows.

    A share counts what the reader left out among the annotated objects, and samples that cannot be
    used among all samples; the two are added.

    Args:
        source: Names the data in messages.
        items: What the reader left out.
        objects: How many objects it kept.
        samples: How many samples they make.

    Raises:
        DataError: The reader left out too much.
    """

    def __init__(
        self, source: str, items: Collection[Skipped], objects: int, samples: int, limit: SkipLimit
    ) -> None:
        self.source, self.limit = source, limit
        self.items = list(items)
        self._objects, self._samples = objects, samples
        self._unusable: dict[int, Skipped] = {}
        self.check()

    def add(self, index: int, name: str, error: Exception) -> None:
        """Leave out a sample, which is listed once; DataError if it is one too many."""
        if index in self._unusable:
            return
        item = Skipped(name, " ".join(str(error).splitlines()))
        self._unusable[index] = item
        self.items.append(item)
        if len(self._unusable) <= SHOWN:
            logger.warning("%s: left out %s: %s", self.source, item.name, item.reason)
        self.check()

    def check(self) -> None:
        lost = [item for item in self.items if item.counts]
        read, unusable = len(lost) - len(self._unusable), len(self._unusable)
        if self.limit.allows((read, read + self._objects), (unusable, self._samples)):
            return
        of = f"{read} of {read + self._objects} objects" if read else ""
        samples = f"{unusable} of {self._samples} samples" if unusable else ""
        raise DataError(
            f"More of {self.source} cannot be used than --max-skipped {self.limit.text} allows.",
            found=f"Left out: {' and '.join(part for part in (of, samples) if part)}. "
            f"The last: {lost[-1].name}: {lost[-1].reason}",
            repair="Repair the data (`flmm data check` lists all of it), or raise --max-skipped.",
        )

    def to_list(self) -> list[dict[str, str]]:
        """The items, ready for JSON."""
        return [{"item": item.name, "reason": item.reason} for item in self.items]
