"""Reads pickles of plain containers without running code.

RefCOCO's refs are distributed as pickles by many mirrors. `pickle.load` runs whatever code a file
asks for; here `find_class`, the only way to code, is closed.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from flmm_core.data.records import read_bytes
from flmm_core.errors import DataError

MAX_BYTES = 256 * 1024 * 1024
"""The largest distributed refs file has about 40 MB."""


CONTAINERS = (list, tuple, dict, set, frozenset)
MOST_VALUES = 200_000_000
"""How many values a file may hold if its containers were written out wherever they stand. A list of
twice a list of twice a list ... needs few bytes, and no time is enough to read it."""

_SHUT = (
    # They allocate memory before reading, or take objects from this process.
    pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER,
    # It doubles a value with one byte; no pickler writes it.
    pickle.DUP,
)  # fmt: skip


_Unpickler: Any = pickle._Unpickler
"""Its methods are its interface to subclasses, but typeshed does not know all of them."""


class _PlainUnpickler(_Unpickler):  # type: ignore[misc]
    """Accepts lists, tuples, dicts, sets, strings and numbers only.

    In Python, because the unpickler in C allocates memory for any memo number in the file: ten
    bytes can exhaust it. It takes about twice as long.

    Attributes:
        shares: Whether a container stands in several places.
    """

    def __init__(self, data: bytes, path: Path, encoding: str) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._path = path
        self.shares = False

    def load_get(self) -> None:
        super().load_get()
        self._note_shared()

    def load_binget(self) -> None:
        super().load_binget()
        self._note_shared()

    def load_long_binget(self) -> None:
        super().load_long_binget()
        self._note_shared()

    def _note_shared(self) -> None:
        self.shares |= isinstance(self.stack[-1], CONTAINERS)

    def load_dict(self) -> None:
        _check_hashed(self.stack[::2])
        super().load_dict()

    def load_setitem(self) -> None:
        _check_hashed(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self) -> None:
        _check_hashed(self.stack[::2])
        super().load_setitems()

    def load_frozenset(self) -> None:
        _check_hashed(self.stack)
        super().load_frozenset()

    def load_additems(self) -> None:
        _check_hashed(self.stack)
        super().load_additems()

    def find_class(self, module: str, name: str) -> NoReturn:
        raise DataError(
            f"The file {self._path} is not a plain data file: it asks for the Python object "
            f"'{module}.{name}'.",
            found="A refs file holds only lists, dicts, strings and numbers. "
            "Nothing in it was run.",
            repair="Do not use this file; get a new copy from a publisher you trust.",
        )

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError(f"it refers to an object outside the file ({pid!r})")


_PlainUnpickler.dispatch = {
    code: getattr(_PlainUnpickler, load.__name__)
    for code, load in _Unpickler.dispatch.items()
    if bytes([code]) not in _SHUT
}


def _check_hashed(values: Sequence[Any]) -> None:
    """Keys, and items of sets, are plain: hashing a tuple would read all that is in it."""
    if any(isinstance(value, CONTAINERS) for value in values):
        raise pickle.UnpicklingError("a key, or an item of a set, is a container")


def _count_values(root: Any) -> int:
    """The number of values if every container were written out wherever it stands.

    UnpicklingError if one contains itself. Each container is visited once, without recursion.
    """
    counts: dict[int, int] = {}
    waiting = [(root, False)]
    while waiting:
        value, seen = waiting.pop()
        if not isinstance(value, CONTAINERS) or counts.get(id(value), 0) > 0:
            continue
        inner = list(value.values()) if isinstance(value, dict) else list(value)
        if seen:
            counts[id(value)] = 1 + sum(counts.get(id(item), 1) for item in inner)
        elif id(value) in counts:
            raise pickle.UnpicklingError("a container contains itself")
        else:
            counts[id(value)] = 0  # begun
            waiting.append((value, True))
            waiting += [(item, False) for item in inner]
    return counts.get(id(root), 1)


def read_plain_pickle(path: Path) -> Any:
    """The plain containers in a pickle of any protocol, Python 2's included.

    Python 2 strings are read as UTF-8, or as Latin-1 where they are not UTF-8.

    Raises:
        DataError: The file is missing, larger than `MAX_BYTES`, broken or cut off, or asks for
            any Python object; nothing of it has been run then.
    """
    if path.is_file() and path.stat().st_size > MAX_BYTES:
        raise DataError(
            f"The file {path} is too large to be a refs file.",
            found=f"It has {path.stat().st_size:,} bytes; the limit is {MAX_BYTES:,}.",
            repair="Get a new copy from a publisher you trust.",
        )
    data = read_bytes(path)
    try:
        try:
            reader = _PlainUnpickler(data, path, "utf-8")
            content = reader.load()
        except UnicodeDecodeError:
            reader = _PlainUnpickler(data, path, "latin-1")
            content = reader.load()
        if reader.shares and _count_values(content) > MOST_VALUES:
            raise pickle.UnpicklingError("it is lists within lists without end")
        return content
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a broken pickle can raise nearly anything
        raise DataError(
            f"The file {path} is not a whole pickle.",
            found=f"It has {len(data):,} bytes; reading them ended with: "
            f"{str(error) or 'nothing said'} ({type(error).__name__}).",
            repair="The file may be cut off; download or copy it again.",
        ) from error
