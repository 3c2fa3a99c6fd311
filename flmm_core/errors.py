"""The errors that a user can fix, in one format.

An `FlmmError` says what was asked for (with the value), what was found or expected, and how to
fix it. The command line prints it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
import errno
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError


LONGEST_LINE = 1000
"""Characters of a line of a message; a name, phrase or value can be of any length."""


class FlmmError(Exception):
    """Base class of the errors that a user can fix.

    Args:
        asked: A complete sentence: what was asked for, with the value.
        found: What was found or expected instead.
        repair: How to fix it.

    Attributes:
        agreed: All processes of a run raise this error, so that only the main one says it.
    """

    exit_code = 1
    agreed = False

    def __init__(self, asked: str, *, found: str = "", repair: str = "") -> None:
        parts = [
            "\n".join(shortened(line, LONGEST_LINE) for line in part.splitlines())
            for part in (asked, found, repair)
        ]
        self.asked, self.found, self.repair = parts
        super().__init__("\n".join(filter(None, parts)))

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors are pickled on their way out of DataLoader workers.
        return partial(type(self), found=self.found, repair=self.repair), (self.asked,)


class RunError(FlmmError):
    """A run started and failed (exit code 1)."""


class LostProcessError(RunError):
    """Another process of the run has ended (exit code 1)."""


class UsageError(FlmmError):
    """An invalid name, option or phrase (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """An invalid configuration file or option; lists all problems (exit code 2)."""


class WeightsError(FlmmError):
    """Weights that are missing, of another model, or do not fit (exit code 3)."""

    exit_code = 3


class DataError(FlmmError):
    """An image, annotation or data set that is missing or broken (exit code 3)."""

    exit_code = 3


class MissingExtraError(FlmmError):
    """An optional dependency that is not installed (exit code 3)."""

    exit_code = 3


class Problems:
    """Collects what is wrong with a command, so that one error tells all of it.

    with problems.part():  # for each thing that can be checked by itself
        ...
    problems.check()
    """

    def __init__(self) -> None:
        self.found: list[FlmmError] = []

    @contextmanager
    def part(self) -> Iterator[None]:
        """Keep the error of the block; what stands after it is checked, too."""
        try:
            yield
        except FlmmError as error:
            self.add(error)

    def add(self, error: FlmmError) -> None:
        """Keep an error, once."""
        if str(error) not in map(str, self.found):
            self.found.append(error)

    def check(self) -> None:
        """Raise what was found.

        Raises:
            FlmmError: The only one; or one of all, usage first and then what is missing, since a
                name that is wrong may be why something is not there.
        """
        if not self.found:
            return
        if len(self.found) == 1:
            raise self.found[0]
        worst = min(self.found, key=lambda error: (2, 3, 1).index(error.exit_code))
        numbered = (
            f"{number}. {error}".replace("\n", "\n   ")
            for number, error in enumerate(self.found, start=1)
        )
        kind = next(kind for kind in type(worst).__mro__ if kind in FlmmError.__subclasses__())
        raise kind(
            f"{len(self.found)} problems were found, before anything was loaded.",
            found="\n".join(numbered),
        )


def dead_worker_error(error: Exception) -> RunError | None:
    """The error to show if a DataLoader worker died; None if `error` is not about that.

    PyTorch raises it wherever it notices: while waiting for a batch, or in the middle of a step.
    """
    signs = "exited unexpectedly", "is killed by signal"
    killed = isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    if not killed and not isinstance(error, ConnectionError | EOFError):
        return None
    return RunError(
        "A DataLoader worker died.",
        found=str(error).splitlines()[0] if str(error) else type(error).__name__,
        repair="The machine may be out of memory or of /dev/shm: use fewer --workers, or 0.",
    )


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
_OTHERS = {
    errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR,
    errno.EISDIR,
}  # fmt: skip
_NO_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory")


def machine_error(error: BaseException) -> RunError | None:
    """The error to show if the disk, a permission or the memory is the reason; None if not.

    Any other error of the operating system would be a fault of ours.
    """
    if isinstance(error, MemoryError) or (
        isinstance(error, (RuntimeError, OSError)) and any(s in str(error) for s in _NO_MEMORY)
    ):
        return RunError(
            "There is not enough memory.",
            found=shortened(str(error).splitlines()[0], 300) if str(error) else "",
            repair="Use a smaller batch (flmm train: --batch-size auto), smaller images, a smaller "
            "model or --dtype bfloat16, or a device with more memory.",
        )
    if not isinstance(error, OSError) or error.errno not in _FULL | _FORBIDDEN | _OTHERS:
        return None
    name = error.filename2 or error.filename  # of a copy, where to
    place = f"'{name}'" if name else "a file"
    repair = "Check the path, or give another one."
    if error.errno in _FULL:
        repair = "Free some space and run the command again; what is written whole is kept."
    elif error.errno in _FORBIDDEN:
        repair = "Check the permissions of the path, or give another one."
    return RunError(
        f"{place[:1].upper()}{place[1:]} cannot be read or written.",
        found=f"{error.strerror}.",
        repair=repair,
    )


def shortened(text: str, most: int = 80) -> str:
    """The text, or its beginning and its end if it is longer than `most` characters."""
    if len(text) <= most:
        return text
    half = (most - 5) // 2
    return f"{text[:half]} ... {text[-half:]}"


def one_line(error: BaseException, most: int = 300) -> str:
    """Type and text of any error, on one line that can be printed."""
    try:
        text = str(error)[: 10 * most]
    except Exception:  # of a class whose text cannot be made
        text = ""
    name = type(error).__name__
    return shortened(plain(f"{name}: {text}" if text.strip() else name), most)


def plain(text: str) -> str:
    """The text on one line, with what a terminal would not show, or would obey, as escapes."""
    line = " ".join(text.split())
    if line.isprintable():
        return line
    escaped = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return "".join(escaped)


_DISTRIBUTIONS = {
    "PIL": "pillow",
    "awq": "autoawq",
    "bitsandbytes": "bitsandbytes",
    "compressed_tensors": "compressed-tensors",
    "cv2": "opencv-python-headless",
    "einops": "einops",
    "flash_attn": "flash-attn",
    "google.protobuf": "protobuf",
    "gptqmodel": "gptqmodel",
    "hqq": "hqq",
    "optimum": "optimum",
    "peft": "peft",
    "sentencepiece": "sentencepiece",
    "skimage": "scikit-image",
    "sklearn": "scikit-learn",
    "tiktoken": "tiktoken",
    "timm": "timm",
    "torchao": "torchao",
    "torchvision": "torchvision",
    "yaml": "PyYAML",
}
"""What installs a module that models' code is known to import."""


def install_advice(error: ImportError) -> str:
    """A sentence, without its period, on what to install for what could not be imported.

    A module has not the name of its distribution: one that is installed says what it has, and for
    others a command is given only where it is known.
    """
    if named := re.search(r"pip install (?:-U |--upgrade )?([^\s`'\")]+)", str(error)):
        return f"Install it: pip install {named[1].rstrip('.,')}"
    name = error.name or ""
    package = name.partition(".")[0]
    if not package:
        return "Install it"
    owners = sorted(set(metadata.packages_distributions().get(package, ())))
    if len(owners) == 1:
        return f"Install a version of it that fits: pip install --upgrade {owners[0]}"
    for known in (".".join(name.split(".")[:2]), package):
        if known in _DISTRIBUTIONS:
            return f"Install it: pip install {_DISTRIBUTIONS[known]}"
    if package in sys.stdlib_module_names:
        return f"Use a Python whose module '{package}' has it"
    return f"Install the package that has the module '{package}'"


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, on one line: where, and what."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that suggests the closest of `known` to `name`, or an empty string."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f"Did you mean '{near[0]}'?" if near else ""
