"""Writes files and folders whole or not at all, and holds a folder for one process.

Until everything is written, a file lies beside its place as `NAME.partial`, a folder as
`.NAME.XXXXXXXX.partial`; then it is renamed. An error or Ctrl-C removes it and is raised
unchanged, an OSError with the path; what a killed process left behind is removed by `sweep`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

from platformdirs import user_cache_path

from flmm_core.errors import UsageError
from flmm_core.segment import is_text

PARTIAL = ".partial"
"""The ending of every unfinished file or folder."""
LOCK = ".lock"
"""The file in a folder that a process holds; one that a killed process left holds nothing."""

SEAL = "sha256"
"""The key under which a sealed JSON object holds the digest of the rest of itself."""


def cache_folder() -> Path:
    """Where what can be made again is kept: $FLMM_CACHE, or flmm in the user's cache folder."""
    chosen = os.environ.get("FLMM_CACHE")
    return Path(chosen).expanduser() if chosen else user_cache_path("flmm", appauthor=False)


def existing(path: Path) -> Path:
    """The path itself, or the nearest folder above it that exists."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """How much fits on the disk where a file or folder is, or would be."""
    return shutil.disk_usage(existing(path.absolute())).free


def check_writable(folder: Path, repair: str = "Give another --output.") -> None:
    """`UsageError` if a folder cannot be created or written: better before hours of work."""
    if not is_text(str(folder)):
        raise UsageError(
            f"The name of the output folder, {str(folder)!r}, is not UTF-8 text.", repair=repair
        )
    place = folder
    try:
        place = existing(folder)
        with tempfile.TemporaryFile(dir=place):
            return
    except OSError as error:
        raise UsageError(
            f"The output folder '{folder}' cannot be written.",
            found=f"{error.strerror}: {place}.",
            repair=repair,
        ) from error


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file; missing parent folders are created."""
    with open_whole(path) as file:
        file.write(data)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file, line ends as they are.

    Bytes of file names that are not UTF-8 are written as JSON's escapes (`\\udce9`).
    """
    write_bytes(path, printable(text).encode())


def printable(text: str) -> str:
    """The same, with bytes of a file name that are not UTF-8 as escapes: `\\udce9`."""
    return text if text.isascii() else text.encode(errors="backslashreplace").decode()


def write_json(path: Path, content: Any, *, compact: bool = False) -> None:
    """Write a JSON file: indented for people, or `compact` on one line."""
    text = json.dumps(content, indent=None if compact else 2, ensure_ascii=False)
    write_text(path, text if compact else f"{text}\n")


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with a digest of itself as its last key: damage to it can be noticed."""
    rest = {key: value for key, value in content.items() if key != SEAL}
    return {**rest, SEAL: hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()}


@contextmanager
def open_whole(path: Path) -> Iterator[BinaryIO]:
    """A binary file to write bit by bit; it appears under its name at the end of the block."""
    with whole_file(path) as partial, partial.open("wb") as file:
        yield file


@contextmanager
def whole_file(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Where to create a file (or a symbolic link) that replaces `path` at the end of the block.

    Missing parent folders are created. `sync` waits until the data are on the disk, so that the
    name survives a power failure only with its contents.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}{PARTIAL}")
    partial.unlink(missing_ok=True)
    with naming(path):
        try:
            yield partial
            if sync:
                _sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Give an OSError that names no file (such as a full disk) the path that was being written."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def whole_folder(folder: Path, *, replace: bool = False, sync: bool = False) -> Iterator[Path]:
    """An empty folder to write into that becomes `folder` at the end of the block.

    Args:
        folder: Missing parents are created. Without `replace`, what was written is moved into an
            existing folder, in the order of the names; a folder that another process created
            during the block is left as it is.
        replace: Replace an existing folder.
        sync: As for `whole_file`, for every file.
    """
    folder = folder.resolve()
    fill = folder.is_dir() and not replace
    aside, old = (_aside(folder, folder if fill else folder.parent) for _ in range(2))
    aside.mkdir(parents=True)
    try:
        with naming(folder):
            yield aside
            for path in aside.rglob("*") if sync else ():
                if path.is_file():
                    _sync(path)
        if fill:
            for path in sorted(aside.iterdir()):
                path.replace(folder / path.name)
        elif folder.is_dir() and replace:
            folder.rename(old)
            aside.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        else:
            try:
                aside.rename(folder)
            except OSError:
                if replace or not folder.is_dir():
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _aside(folder: Path, parent: Path) -> Path:
    return parent / f".{folder.name}.{uuid4().hex[:8]}{PARTIAL}"


def remove_folder(folder: Path) -> None:
    """Remove a folder: it is gone from its place at once, whole, even if the process is killed."""
    old = _aside(folder, folder.parent)
    folder.rename(old)
    shutil.rmtree(old, ignore_errors=True)


def sweep(folder: Path, prefix: str = "") -> None:
    """Remove unfinished files and folders whose names begin so; nobody may be writing them."""
    for path in folder.glob(f"{prefix}*{PARTIAL}"):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def hold(folder: Path, doing: str) -> Iterator[None]:
    """Hold a folder for this process alone; it is created if it is missing.

    The operating system frees it when the process ends, however that happens.

    Args:
        folder: No other process may hold it.
        doing: What the holder does, for the message: "training into".

    Raises:
        UsageError: Another process holds it.
    """
    from filelock import FileLock, Timeout  # it takes as long to import as the rest of --help

    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UsageError(
            f"Another process is {doing} '{folder}'.",
            repair="Wait for it or stop it, or give another folder.",
        ) from None
    except NotImplementedError:  # some network drives have no locks
        pass
    try:
        yield
    finally:
        with suppress(OSError):  # Windows removes no open file
            (folder / LOCK).unlink()
        lock.release()


def discard_empty(folder: Path) -> None:
    """Remove a folder that this process holds, if there is nothing else in it."""
    if [path.name for path in folder.iterdir()] in ([], [LOCK]):
        (folder / LOCK).unlink(missing_ok=True)
        folder.rmdir()
