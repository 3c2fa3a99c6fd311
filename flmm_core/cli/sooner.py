"""What libraries import, and no command uses, is imported when it is used.

torchvision and transformers import torch's compiler to mark functions for it, scipy for losses, and
models and data sets beside image transforms; together that takes more than a second. Stand-ins
take their places. They hold the few names that are imported; for anything else they give way to
the real modules.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""The compiler's; without it they change nothing."""
TAKEN: Mapping[str, Sequence[str]] = {
    COMPILER: (),
    f"{COMPILER}.utils": ("is_compile_supported",),
    f"{COMPILER}._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    "scipy.optimize": ("linear_sum_assignment",),
    "torchvision.datasets": (),
    "torchvision.models": (),
}
"""The modules, and what is imported from them by name, to be called later."""


class _StandIn(ModuleType):
    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        held: dict[str, Any] = {
            name: partial(_called_later, spec.name, name) for name in TAKEN[spec.name]
        }
        if spec.name == COMPILER:
            held |= dict.fromkeys(MARKS, _unmarked)
        if spec.submodule_search_locations is not None:
            held["__path__"] = spec.submodule_search_locations
        vars(self).update(held, __spec__=spec, __file__=spec.origin)

    def give_way(self) -> None:
        for name in [each for each in vars(self) if not each.startswith("__")]:
            del vars(self)[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__all__":  # Python asks any module; that is no use
            raise AttributeError(name)
        return getattr(_real(self.__name__), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(_real(self.__name__), name, value)

    def __dir__(self) -> list[str]:
        return dir(_real(self.__name__))


class _Submodules(MetaPathFinder):
    """Finds modules in a package that has a stand-in: in the real package."""

    def find_spec(self, fullname: str, *_: Any) -> ModuleSpec | None:
        package = fullname.rpartition(".")[0]
        if not isinstance(sys.modules.get(package), _StandIn):
            return None
        _real(package)
        # The package may have imported it; Python would do so again, and there would be two.
        there = sys.modules.pop(fullname, None)
        return None if there is None else spec_from_loader(fullname, _There(there))


class _There(Loader):
    """Of a module that is there already."""

    def __init__(self, module: ModuleType) -> None:
        self.module, self.spec = module, module.__spec__

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self.module

    def exec_module(self, module: ModuleType) -> None:
        vars(module)["__spec__"] = self.spec  # some modules refuse attributes


def postpone_imports() -> None:
    """Call before torchvision and transformers are imported; they are not postponed themselves."""
    import torch  # noqa: F401

    if any(isinstance(finder, _Submodules) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Submodules())
    for name in TAKEN:
        spec = None if name in sys.modules else _spec(name)
        if spec is None:
            continue
        sys.modules[name] = stand_in = _StandIn(spec)
        package, _, own = name.rpartition(".")
        if package in sys.modules:
            vars(sys.modules[package])[own] = stand_in
    if "transformers" not in sys.modules:
        _import_transformers()


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, without importing its package; None if it is not installed."""
    package = name.rpartition(".")[0]
    if not package:
        return PathFinder.find_spec(name)
    around = _spec(package)
    places = around.submodule_search_locations if around else None
    return PathFinder.find_spec(name, places) if places else None


def _import_transformers() -> None:
    """transformers reads all its files to learn what each offers, and again for its `models`.

    It would keep what it read, if it had not more folders than room.
    """
    theirs: Any = importlib.import_module("transformers.utils.import_utils")
    read = getattr(theirs, "create_import_structure_from_path", None)
    if read is None:
        return

    def read_folder(path: str | os.PathLike[str]) -> Any:
        return read(Path(path).parent if Path(path).is_file() else path)

    theirs.create_import_structure_from_path = read_folder
    try:
        importlib.import_module("transformers.models")
    finally:
        theirs.create_import_structure_from_path = read


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """The function itself, also as `@mark(...)`."""
    return _unmarked if function is None else function


def _called_later(module: str, name: str, *arguments: Any, **named: Any) -> Any:
    return getattr(_real(module), name)(*arguments, **named)


_giving_way = threading.Lock()


def _real(name: str) -> ModuleType:
    """The module itself. Whoever still has its stand-in finds nothing there but this."""
    project = name.partition(".")[0]
    with _giving_way:
        for each in TAKEN:
            found = sys.modules.get(each)
            if isinstance(found, _StandIn) and each.partition(".")[0] == project:
                del sys.modules[each]
                found.give_way()
    return importlib.import_module(name)
