"""Where images lie whose names were written by another tool, on another machine."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from itertools import chain
from pathlib import Path, PureWindowsPath
from unicodedata import normalize
from urllib.parse import unquote

from flmm_core.data.records import first_file
from flmm_core.errors import DataError


def spellings(written: str) -> list[str]:
    r"""The relative paths that a name may stand for, as it is written first.

    "images\my%20mug.jpg" may be the file "my mug.jpg" in "images"; Label Studio writes its local
    files as "/data/local-files/?d=images/a.jpg", and the address of a file may have a query. An
    accent may be a character of its own, as in names that macOS has written.
    """
    names = [written, written.rpartition("?d=")[2]]
    if "://" in written:
        names.append(written.partition("?")[0])
    names += [PureWindowsPath(name).as_posix() for name in names]
    names += [unquote(name) for name in names]
    names += [normalize(form, name) for form in ("NFC", "NFD") for name in names]
    return list(dict.fromkeys(names))


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

    The first folders of a name may be those of the machine that wrote it. Without them an image is
    found too, unless another image of the file has the rest of its name as well.

    Args:
        folders: Where to look, in this order.
        written: The names of all images of the file.
    """

    def __init__(self, folders: Iterable[Path], written: Iterable[str]) -> None:
        self._folders = list(dict.fromkeys(folders))
        self._there = [folder for folder in self._folders if folder.is_dir()]
        self._written = written

    def first(self, name: str, others: Sequence[str] = ()) -> Path | None:
        """The image of a name, else a file of one of the other names, else none."""
        tried = chain([name], others, spellings(name), self._own_tails(name))
        found = (first_file(self._there, [one]) for one in tried)
        return next((path for path in found if path is not None), None)

    def find(
        self, name: str, asked: str, repair: str, *, others: Sequence[str] = (), found: str = ""
    ) -> Path:
        """As `first`; if it is missing, a DataError "`asked` is missing"."""
        if path := self.first(name, others):
            return path
        own = list(self._own_tails(name))
        if shared := [tail for tail in tails(name) if tail not in own]:
            found += f"Several images of the file are named {shared[0]}; only folders differ. "
        names = dict.fromkeys([name, *others, *spellings(name), *own])
        raise DataError(
            f"{asked} is missing.",
            found="\n  ".join(
                [f"{found}Looked for {', '.join(names)} in:", *map(str, self._folders)]
            ),
            repair=repair,
        )

    def _own_tails(self, name: str) -> Iterator[str]:
        yield from (tail for tail in tails(name) if self._owners[tail] <= 1)

    @cached_property
    def _owners(self) -> Counter[str]:
        """How many images of the file have an end of a name; two spellings of it are one."""
        ends = {tuple(tails(name)[:1]): tails(name) for name in self._written}
        return Counter(tail for owned in ends.values() for tail in owned)
