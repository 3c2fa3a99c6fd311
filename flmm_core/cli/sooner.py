"""What libraries import, and no command uses, is imported when it is used.

torchvision and transformers import torch's compiler to mark functions for it, its symbolic shapes
(and sympy) for tensors that are spread over machines, scipy for losses, and models and data sets
beside image transforms; together that takes two seconds. Stand-ins take their places. They hold
the few names that are imported; for anything else they give way to the real modules.
"""

from __future__ import annotations

import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

from flmm_core.cli.lighter import import_transformers

COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")
"""The compiler's; without it they change nothing."""
SHAPES = "torch.fx.experimental.symbolic_shapes"
OF_PLAIN: Mapping[str, Callable[..., Any]] = {
    "expect_true": lambda value: value,
    "guard_or_false": lambda value: value,
    "guard_or_true": lambda value: value,
    "guard_size_oblivious": lambda value: value,
    "guarding_hint_or_throw": lambda value: value,
    "has_guarding_hint": lambda _: True,
    "is_nested_int": lambda _: False,
    "statically_known_true": lambda value: value,
    "sym_and": lambda *values: all(values),
    "sym_eq": lambda value, other: value == other,
    "sym_or": lambda *values: any(values),
}
"""What functions of symbolic shapes say of integers and truth values that are not symbolic.

torch asks them for whatever has no values, as models have that are not loaded yet.
"""
CLASSES = {"Basic", "GuardOnDataDependentSymNode"}
"""`isinstance` and `except` ask for these. Before the real module is there, nothing is of them."""
TAKEN: Mapping[str, Sequence[str]] = {
    COMPILER: (),
    f"{COMPILER}.utils": ("is_compile_supported",),
    f"{COMPILER}._trace_wrapped_higher_order_op": ("TransformGetItemToIndex",),
    SHAPES: ("GuardOnDataDependentSymNode", "has_free_unbacked_symbols", *OF_PLAIN),
    "sympy": ("Basic",),
    "torch.utils._sympy.functions": ("Max",),
    "scipy.optimize": ("linear_sum_assignment",),
    "torchvision.datasets": (),
    "torchvision.models": (),
}
"""The modules, and what is imported from them by name, to be called or caught later."""


class _StandIn(ModuleType):
    def __init__(self, spec: ModuleSpec) -> None:
        super().__init__(spec.name)
        held: dict[str, Any] = {
            name: type(name, (Exception,), {})
            if name in CLASSES
            else partial(_called_later, spec.name, name)
            for name in TAKEN[spec.name]
        }
        if spec.name == COMPILER:
            held |= dict.fromkeys(MARKS, _unmarked)
        if spec.submodule_search_locations is not None:
            held["__path__"] = spec.submodule_search_locations
        vars(self).update(held, __spec__=spec, __file__=spec.origin)

    def give_way(self) -> dict[str, Any]:
        """What it held, by name."""
        names = [each for each in vars(self) if not each.startswith("__")]
        return {name: vars(self).pop(name) for name in names}

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
    import_transformers()


def _spec(name: str) -> ModuleSpec | None:
    """Where a module is, without importing its package; None if it is not installed."""
    package = name.rpartition(".")[0]
    if not package:
        return PathFinder.find_spec(name)
    around = _spec(package)
    places = around.submodule_search_locations if around else None
    return PathFinder.find_spec(name, places) if places else None


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """The function itself, also as `@mark(...)`."""
    return _unmarked if function is None else function


def _called_later(module: str, name: str, *arguments: Any, **named: Any) -> Any:
    if name in OF_PLAIN and not named and _is_plain(arguments):
        return OF_PLAIN[name](*arguments)
    return getattr(_real(module), name)(*arguments, **named)


def _is_plain(value: Any) -> bool:
    """Integers, truth values, and sequences of such, as shapes are; nothing symbolic."""
    if isinstance(value, tuple | list):
        return all(map(_is_plain, value))
    return isinstance(value, int)


_giving_way = threading.Lock()


def _real(name: str) -> ModuleType:
    """The module itself. Whoever still has its stand-in finds nothing there but this."""
    package = _package(name)
    held: dict[str, dict[str, Any]] = {}
    with _giving_way:
        for each in TAKEN:
            found = sys.modules.get(each)
            if isinstance(found, _StandIn) and _package(each) == package:
                del sys.modules[each]
                held[each] = found.give_way()
    real = importlib.import_module(name)
    for each, names in held.items():
        _hand_over(importlib.import_module(each), names)
    return real


def _package(name: str) -> str:
    """Which stand-ins give way together: those of "torch._dynamo", of "torch.fx", ..."""
    return ".".join(name.split(".")[:2])


def _hand_over(real: ModuleType, held: Mapping[str, Any]) -> None:
    """What is real to all modules that imported something that a stand-in held."""
    for module in list(sys.modules.values()):
        own = getattr(module, "__dict__", {})
        for name, stand_in in held.items():
            if own.get(name) is stand_in:
                own[name] = getattr(real, name, stand_in)
