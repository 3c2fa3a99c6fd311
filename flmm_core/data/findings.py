"""What a reader finds wrong, or has to leave out: the first fault stops it, or all are collected.

Reading and checking are one code. A reader puts each part of its work that can fail by itself
into `with findings.part():`. Ordinary reading stops at the first fault; `flmm data check` goes on.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flmm_core.errors import DataError

logger = logging.getLogger(__name__)

Track = Callable[[Collection[Any]], Iterable[Any]]
"""Goes through a collection and shows somebody how far it is; `iter` shows nothing."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An item that is whole but cannot be scored.

    Attributes:
        name: Names it, with its file.
        reason: Why, in a few words.
    """

    name: str
    reason: str


class Findings:
    """Faults and left-out items of one reading.

    Args:
        keep_on: Collect every fault in `faults` instead of raising the first.
    """

    def __init__(self, *, keep_on: bool = False) -> None:
        self.keep_on = keep_on
        self.faults: list[DataError] = []
        self.skipped: list[Skipped] = []
        self._told: set[str] = set()

    @contextmanager
    def part(self) -> Iterator[None]:
        """A part of the work whose failing leaves the other parts readable."""
        try:
            yield
        except DataError as error:
            if not self.keep_on:
                raise
            # One broken record may be asked for many times.
            if str(error) not in self._told:
                self._told.add(str(error))
                self.faults.append(error)

    def skip(self, name: str, reason: str) -> None:
        """Note an item that is left out."""
        self.skipped.append(Skipped(name, reason))

    def warn(self, source: str) -> None:
        """Log how many items were left out, if any."""
        if self.skipped:
            first = self.skipped[0]
            logger.warning(
                "%s: %d left out, the first is %s (%s); `flmm data check` lists them",
                source,
                len(self.skipped),
                first.name,
                first.reason,
            )
