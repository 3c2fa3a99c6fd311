"""Every error that a user can repair, in one format.

An `FlmmError` says what was asked for (with the value), what was found or expected, and what
repairs it. The command line prints it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class FlmmError(Exception):
    """Base of all errors that a user can repair.

    Args:
        asked: A whole sentence: what was asked for, with the value.
        found: What was found or expected instead.
        repair: What to do about it.
    """

    exit_code = 1

    def __init__(self, asked: str, *, found: str = "", repair: str = "") -> None:
        self.asked = asked
        self.found = found
        self.repair = repair
        super().__init__("\n".join(part for part in (asked, found, repair) if part))

    def __reduce__(self) -> tuple[Any, ...]:
        # An error crosses process borders (DataLoader workers) with all its parts.
        return _rebuild, (type(self), self.asked, self.found, self.repair)


def _rebuild(kind: type[FlmmError], asked: str, found: str, repair: str) -> FlmmError:
    return kind(asked, found=found, repair=repair)


class RunError(FlmmError):
    """A run started and failed (exit code 1)."""

    exit_code = 1


class UsageError(FlmmError):
    """A name, option or phrase that cannot be used (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file or option with problems, all of them listed (exit code 2)."""


class WeightsError(FlmmError):
    """Weights that are missing, foreign or do not fit (exit code 3)."""

    exit_code = 3


class DataError(FlmmError):
    """An image, annotation or data set that is missing or broken (exit code 3)."""

    exit_code = 3


class MissingExtraError(FlmmError):
    """An optional dependency that is not installed (exit code 3)."""

    exit_code = 3


def reader_died(error: Exception) -> RunError | None:
    """What to say if a process that reads images was killed; None if the error is another one.

    PyTorch raises it where it learns of it: while a batch is waited for, or in the midst of a step.
    """
    signs = "exited unexpectedly", "is killed by signal"
    killed = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    if not killed and not isinstance(error, ConnectionError | EOFError):
        return None
    return RunError(
        "A process that reads images has died.",
        found=str(error).splitlines()[0] if str(error) else type(error).__name__,
        repair="The machine may be short of memory or of /dev/shm: give fewer --workers, or 0.",
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence naming the nearest of `known` to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean '{near[0]}'?" if near else ""
