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

from flmm_core.errors import DataError

logger = logging.getLogger(__name__)

Track = Callable[[Collection[Any]], Iterable[Any]]
"""Iterates over a collection and shows progress; `iter` shows none."""


LONGEST = 500
"""Characters of a reason."""


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

    @classmethod
    def because(cls, name: str, error: Exception | str) -> Skipped:
        """Left out because of an error, whose message becomes one line of limited length."""
        reason = " ".join(str(error).splitlines())
        return cls(name, reason if len(reason) <= LONGEST else f"{reason[: LONGEST - 3]}...")


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
