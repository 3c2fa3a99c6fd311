"""Where images lie whose names were written by another tool, on another machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from urllib.parse import unquote

from flmm_core.data.records import find_file, first_file


def spellings(written: str) -> list[str]:
    r"""The relative paths that a name may stand for, as it is written first.

    "images\my%20mug.jpg" may be the file "my mug.jpg" in "images"; Label Studio writes its local
    files as "/data/local-files/?d=images/a.jpg".
    """
    names = [written, written.rpartition("?d=")[2]]
    names += [PureWindowsPath(name).as_posix() for name in names]
    return list(dict.fromkeys([*names, *map(unquote, names)]))


def tails(written: str) -> list[str]:
    r"""The ends of a path, longest first: "b/c.jpg" and "c.jpg" of "C:\a\..\b\c.jpg"."""
    found: list[str] = []
    for name in spellings(written)[::-1]:
        kept: list[str] = []
        for part in PureWindowsPath(name).parts[bool(PureWindowsPath(name).anchor) :]:
            kept = [] if part == ".." else [*kept, part]
        found += ["/".join(kept[start:]) for start in range(len(kept))]
    return list(dict.fromkeys(found))


class ImagePaths:
    """Finds the images of an annotation file in some folders.

    Folders of a name that are not there may be those of the machine that wrote it, and are left
    out, from the first on, unless another image of the file has the rest of the name too.

    Args:
        folders: Where to look, in this order.
        names: The names of all images of the file.
    """

    def __init__(self, folders: Iterable[Path], names: Iterable[str]) -> None:
        self._folders = list(dict.fromkeys(folders))
        self._there = [folder for folder in self._folders if folder.is_dir()]
        one_each = {tuple(tails(name)[:1]): name for name in names}
        self._owners = Counter(tail for name in one_each.values() for tail in tails(name))

    def names(self, written: str) -> list[str]:
        """All names that an image may have, the likeliest first."""
        own = [tail for tail in tails(written) if self._owners[tail] <= 1]
        return list(dict.fromkeys([*spellings(written), *own]))

    def first(self, names: Sequence[str]) -> Path | None:
        """The first of the names that is a file in a folder, if any."""
        found = (first_file(self._there, [name]) for name in names)
        return next((path for path in found if path is not None), None)

    def find(self, written: str, asked: str, repair: str, found: str = "") -> Path:
        """The image; DataError as of `find_file` if it is missing."""
        names = self.names(written)
        if path := self.first(names):
            return path
        shared = [tail for tail in tails(written) if self._owners[tail] > 1]
        if shared:
            found += f"Several images of the file are named {shared[0]}; their folders decide. "
        return find_file(self._folders, names, asked, repair, found)
