"""A folder at any address of fsspec, whose files appear whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from flmm_core.annotate.inputs import reading
from flmm_core.files import PARTIAL, whole_file


class Store:
    """The files of one folder, by their names.

    Args:
        address: A path, or an address such as `s3://bucket/folder`.
    """

    def __init__(self, address: str) -> None:
        import fsspec
        from fsspec.implementations.local import LocalFileSystem

        self.address = address
        with reading(address):
            self._filesystem, self._root = fsspec.url_to_fs(address)
        self.local = Path(self._root) if isinstance(self._filesystem, LocalFileSystem) else None

    def names(self) -> set[str]:
        """Of the files that are there."""
        if self.local:
            found = self.local.iterdir() if self.local.is_dir() else ()
            return {path.name for path in found if not path.name.endswith(PARTIAL)}
        with reading(self.address):
            self._filesystem.invalidate_cache()
            if not self._filesystem.isdir(self._root):
                return set()
            return {str(path).rpartition("/")[2] for path in self._filesystem.find(self._root)}

    def exists(self, name: str) -> bool:
        """Whether a file is there."""
        if self.local:
            return (self.local / name).is_file()
        with reading(f"{self.address}/{name}"):
            self._filesystem.invalidate_cache()
            return bool(self._filesystem.exists(f"{self._root}/{name}"))

    def read(self, name: str) -> bytes:
        """The contents of a file; DataError if there is none."""
        with reading(f"{self.address}/{name}"):
            data: bytes = self._filesystem.cat_file(f"{self._root}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file; several processes may write it at the same time, if all write the same.

        Object stores show a file when it is complete; elsewhere it is renamed.
        """
        if self.local is None:
            with reading(f"{self.address}/{name}"):
                self._filesystem.pipe_file(f"{self._root}/{name}", data)
            return
        own = self.local / f".{name}.{uuid4().hex[:8]}{PARTIAL}"
        with whole_file(own, sync=True) as partial:
            partial.write_bytes(data)
        own.replace(self.local / name)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.local:
            (self.local / name).unlink(missing_ok=True)
        elif self.exists(name):
            with reading(f"{self.address}/{name}"):
                self._filesystem.rm_file(f"{self._root}/{name}")

    def __getstate__(self) -> dict[str, Any]:
        return {"address": self.address}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]
