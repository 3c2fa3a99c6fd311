"""Where very many images are: folders, patterns, JSONL and parquet, at any address of fsspec."""

from __future__ import annotations

import io
import os
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from glob import has_magic
from threading import Lock
from typing import Any

from flmm_core.annotate.requests import LISTS, line_request
from flmm_core.data.images import IMAGE_ENDINGS
from flmm_core.errors import DataError, FlmmError, MissingExtraError, Problems, UsageError

PARQUET = ".parquet"
IMAGE_COLUMNS = ("image", "file_name", "image_path", "path", "url")
PHRASE_COLUMN = "phrases"
TOLD = 10
"""Faulty lines that are told of a list."""
AGAIN = "Check the address, and the rights and settings of its storage."


@dataclass(frozen=True, slots=True)
class Item:
    """One image to annotate.

    Attributes:
        image: Its address; of an image within a parquet file, that file's and the row after "#".
        phrases: Its own; empty if it brings none.
    """

    image: str
    phrases: tuple[str, ...] = ()


@dataclass(frozen=True)
class Columns:
    """Columns of parquet files; empty takes the usual ones, if they are there."""

    image: str = ""
    phrases: str = ""


# --- lists of images -----------------------------------------------------------------------------


def find_items(sources: Sequence[str], columns: Columns | None = None) -> Iterator[Item]:
    """All images of some sources, in an order that depends on nothing but their names.

    Args:
        sources: Paths or addresses (`s3://bucket/photos`): of images, folders with images or with
            parquet files at any depth, patterns, JSONL lists and parquet files.
        columns: Of parquet files.

    Raises:
        DataError: A source has no images or cannot be listed.
        MissingExtraError: A package for its kind of storage is missing.
    """
    for source in sources:
        with reading(source):
            files = _files(source)
        for file in files:
            lower = file.partition("::")[0].lower()
            if lower.endswith(LISTS):
                yield from _of_list(file)
            elif lower.endswith(PARQUET):
                yield from _of_table(file, columns or Columns())
            else:
                yield Item(file)


def _files(source: str) -> list[str]:
    """The files that a source names: images, or lists and tables of images."""
    filesystem, path, address = _opened(source)
    first = source.partition("::")[0]
    if filesystem.isdir(path):
        inside = sorted(filesystem.find(path))
        found = [name for name in inside if name.lower().endswith((*IMAGE_ENDINGS, PARQUET))]
        what = f"files that end in {', '.join((*IMAGE_ENDINGS, PARQUET))} in the folder"
    elif has_magic(first) and not filesystem.exists(path):
        found = sorted(name for name in filesystem.glob(path) if not filesystem.isdir(name))
        what = "files that match the pattern"
    elif filesystem.exists(path):
        return [address(path)]
    else:
        raise FileNotFoundError(path)
    if not found:
        raise DataError(f"There is no image in '{source}'.", found=f"Looked for {what}.")
    return [address(name) for name in found]


def _opened(source: str) -> tuple[Any, str, Callable[[str], str]]:
    """The file system of a source, its path there, and what makes addresses of paths there.

    Local paths become absolute: workers run in folders of their own.
    """
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    first, chain, rest = source.partition("::")
    filesystem, path = fsspec.url_to_fs(source)
    if chain:  # "zip://*.png::photos.zip"
        container = rest if "://" in rest else os.path.abspath(rest)  # noqa: PTH100
        kind = first.partition("://")[0]
        return filesystem, path, lambda name: f"{kind}://{name}::{container}"
    if isinstance(filesystem, LocalFileSystem):
        return filesystem, path, str
    return filesystem, path, filesystem.unstrip_protocol


def _of_list(source: str) -> Iterator[Item]:
    """The images of a JSONL list, whose paths are relative to its folder."""
    import fsspec

    folder = source.rpartition("/")[0]
    problems, count = Problems(), 0
    with reading(source), fsspec.open(source, "rb") as file:
        for number, line in enumerate(file, start=1):
            if len(problems.found) == TOLD:
                break
            if line.strip():
                count += 1
                with problems.part():
                    written, phrases = line_request(line, f"line {number} of {source}")
                    alone = not folder or "://" in written or os.path.isabs(written)  # noqa: PTH117
                    image = written if alone else f"{folder}/{written}"
                    if not problems.found:
                        yield Item(image, phrases)
    problems.check()
    if not count:
        raise DataError(f"There is no image in {source}.", found="It has no lines.")


# --- tables --------------------------------------------------------------------------------------


def _of_table(source: str, columns: Columns) -> Iterator[Item]:
    """One item per row of a parquet file; of the columns only phrases are read."""
    with reading(source):
        table = _table(source)
        _image_column(table, source, columns)
        own = _phrase_column(table, source, columns)
        if own is None:
            yield from (Item(f"{source}#{row}") for row in range(table.metadata.num_rows))
            return
        row = 0
        for batch in table.iter_batches(columns=[own]):
            for value in batch.column(0).to_pylist():
                said = [value] if isinstance(value, str) else value or []
                if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
                    raise DataError(
                        f"The column '{own}' of {source} holds no phrases.",
                        found=f"Row {row} is {type(value).__name__}; expected text or lists of it.",
                        repair="Name another column with --phrases-column.",
                    )
                phrases = tuple(one.strip() for one in said if one.strip())
                yield Item(f"{source}#{row}", phrases)
                row += 1


def _table(source: str) -> Any:
    try:
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError(
            "Parquet files are read and written by pyarrow, which is not installed.",
            repair='Install it: pip install "flmm[ray]".',
        ) from error
    import fsspec

    filesystem, path = fsspec.url_to_fs(source)
    return pq.ParquetFile(filesystem.open(path, "rb"))


def _image_column(table: Any, source: str, columns: Columns) -> str:
    names = table.schema_arrow.names
    usual = [name for name in IMAGE_COLUMNS if name in names]
    chosen = columns.image or (usual[0] if usual else "")
    if chosen not in names:
        raise UsageError(
            f"The table {source} has no column '{columns.image}'."
            if columns.image
            else f"The table {source} has no column of images.",
            found=f"Its columns: {', '.join(names)}.",
            repair="Name the column of images with --image-column.",
        )
    return chosen


def _phrase_column(table: Any, source: str, columns: Columns) -> str | None:
    names = table.schema_arrow.names
    if columns.phrases and columns.phrases not in names:
        raise UsageError(
            f"The table {source} has no column '{columns.phrases}'.",
            found=f"Its columns: {', '.join(names)}.",
            repair="Name the column of phrases with --phrases-column.",
        )
    return columns.phrases or (PHRASE_COLUMN if PHRASE_COLUMN in names else None)


# --- reading one image ---------------------------------------------------------------------------


def read_item(image: str, columns: Columns | None = None) -> object:
    """An image, or its encoded bytes in a PIL image, for `to_image`; raises `FlmmError`."""
    source, mark, row = image.rpartition("#")
    inside = mark and source.partition("::")[0].lower().endswith(PARQUET) and row.isdecimal()
    with reading(image):
        if not inside:
            return _pillow(_bytes(image), image)
        value = _cell(source, int(row), columns or Columns())
        if isinstance(value, Mapping):  # as `datasets` stores images
            value = value.get("bytes") or value.get("path")
        if isinstance(value, bytes):
            return _pillow(value, image)
        if isinstance(value, str) and value:
            alone = "://" in value or os.path.isabs(value)  # noqa: PTH117
            path = value if alone else f"{source.rpartition('/')[0] or '.'}/{value}"
            return _pillow(_bytes(path), path)
    raise DataError(f"There is no image in {image}.", found=f"It holds {type(value).__name__}.")


def _bytes(address: str) -> bytes:
    import fsspec

    with fsspec.open(address, "rb") as file:
        data: bytes = file.read()
    return data


def _pillow(data: bytes, name: str) -> object:
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise DataError(f"The image {name} is empty.", found="It has zero bytes.")
    try:
        image = Image.open(io.BytesIO(data))
        image.filename = name  # for messages
        return image
    except UnidentifiedImageError as error:
        raise DataError(
            f"The file {name} is not an image.",
            found="Its contents are of no format that Pillow can read.",
        ) from error


_one_at_a_time = Lock()


@lru_cache(maxsize=2)
def _rows(source: str, columns: Columns, group: int) -> list[Any]:
    """The images of a row group."""
    table = _table(source)
    column = _image_column(table, source, columns)
    values: list[Any] = table.read_row_group(group, columns=[column]).column(0).to_pylist()
    return values


@lru_cache(maxsize=2)
def _starts(source: str) -> tuple[int, ...]:
    """The first row of each row group, and the number of rows."""
    metadata = _table(source).metadata
    starts = [0]
    for group in range(metadata.num_row_groups):
        starts.append(starts[-1] + metadata.row_group(group).num_rows)
    return tuple(starts)


def _cell(source: str, row: int, columns: Columns) -> Any:
    with _one_at_a_time:  # a row group is read once for all threads
        starts = _starts(source)
        group = bisect_right(starts, row) - 1
        return _rows(source, columns, group)[row - starts[group]]


@contextmanager
def reading(name: str) -> Iterator[None]:
    """Turns what a file system raises into a DataError that names what was read."""
    try:
        yield
    except (FlmmError, MemoryError):
        raise
    except ImportError as error:
        raise MissingExtraError(
            f"'{name}' cannot be read: a package for its kind of storage is missing.",
            found=f"{error}.",
            repair="Install it with pip; for s3:// it is s3fs, for gs:// gcsfs.",
        ) from error
    except Exception as error:  # file systems raise nearly anything
        text = error.strerror if isinstance(error, OSError) else None
        if isinstance(error, FileNotFoundError):  # some say only the name
            text = "There is no such file"
        text = text or " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{name} cannot be read.", found=f"{text}.", repair=AGAIN) from error
