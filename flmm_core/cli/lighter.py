"""transformers, with less work: what it prepares for all models waits until one is used.

It reads all of its files to learn what each offers, twice and line by line, and compiles the
patterns of renamed weights of all models to load one. What it offers and loads stays the same.
"""

from __future__ import annotations

import importlib
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any


def import_transformers() -> None:
    """Import it, if nobody has."""
    if "transformers" in sys.modules:
        return
    sys.meta_path.insert(0, _Changed())
    importlib.import_module("transformers.models")
    theirs: Any = importlib.import_module("transformers.utils.import_utils")
    vars(theirs).update(_unread.pop(theirs, {}))


_unread: dict[ModuleType, dict[str, Any]] = {}
"""What `_read_less` replaced."""


def _read_less(theirs: Any) -> None:
    """It would keep what it read of a folder, if it had not more folders than room.

    Of a file, the last line that begins with `__all__` counts.
    """
    _unread[theirs] = before = {
        name: vars(theirs)[name]
        for name in ("create_import_structure_from_path", "fetch__all__")
        if name in vars(theirs)
    }
    if len(before) < 2:
        return
    read_folder, names_in = before.values()

    def read(path: str | os.PathLike[str]) -> Any:
        return read_folder(Path(path).parent if Path(path).is_file() else path)

    def names(content: str) -> Any:
        return names_in(content[content.rfind("\n__all__") + 1 :])

    theirs.create_import_structure_from_path, theirs.fetch__all__ = read, names


class _Pattern:
    """A pattern that is compiled when it is used first."""

    def __init__(self, *given: Any) -> None:
        self._given = given

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # copying asks for what no pattern has
            raise AttributeError(name)
        return getattr(re.compile(*self._given), name)


def _compile_later(theirs: Any) -> None:
    if getattr(theirs, "re", None) is re:
        theirs.re = ModuleType("re")
        vars(theirs.re).update(vars(re), compile=_Pattern)


CHANGES: Mapping[str, Callable[[Any], None]] = {
    "transformers.utils.import_utils": _read_less,
    "transformers.core_model_loading": _compile_later,
}
"""What is done to modules as soon as they are imported."""


class _Changed(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in CHANGES else None
        if spec is not None and spec.loader is not None:
            spec.loader = _Then(spec.loader)
        return spec


class _Then(Loader):
    """Another loader, and then a change."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__loader__"] = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.loader.exec_module(module)
        CHANGES[module.__name__](module)
