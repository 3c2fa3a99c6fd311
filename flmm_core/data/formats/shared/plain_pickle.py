"""Reads pickles of plain containers without running code.

RefCOCO's refs are distributed as pickles by many mirrors. `pickle.load` runs whatever code a file
asks for; here `find_class`, the only way to code, is closed.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from flmm_core.data.records import read_bytes
from flmm_core.errors import DataError

MAX_BYTES = 256 * 1024 * 1024
"""The largest distributed refs file has about 40 MB."""


class _PlainUnpickler(pickle._Unpickler):
    """Accepts lists, tuples, dicts, sets, strings and numbers only.

    In Python, because the unpickler in C allocates memory for any memo number in the file: ten
    bytes can exhaust it. It takes about twice as long.
    """

    # Without opcodes that allocate memory before reading, or take objects from this process.
    dispatch: ClassVar = {
        code: load
        for code, load in pickle._Unpickler.dispatch.items()
        if bytes([code])
        not in (pickle.BYTEARRAY8, pickle.EXT1, pickle.EXT2, pickle.EXT4, pickle.NEXT_BUFFER)
    }

    def __init__(self, data: bytes, path: Path, encoding: str) -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._path = path

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
            return _PlainUnpickler(data, path, "utf-8").load()
        except UnicodeDecodeError:
            return _PlainUnpickler(data, path, "latin-1").load()
    except DataError:
        raise
    except Exception as error:  # a broken pickle can raise nearly anything
        raise DataError(
            f"The file {path} is not a whole pickle.",
            found=f"It has {len(data):,} bytes; reading them ended with: "
            f"{str(error) or 'nothing said'} ({type(error).__name__}).",
            repair="The file may be cut off; download or copy it again.",
        ) from error
