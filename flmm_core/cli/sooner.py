"""torch's compiler is imported when it is used, not by every command.

torchvision and transformers import `torch._dynamo` to mark functions for `torch.compile`, which no
command calls; that takes up to a second. Stand-ins take the marks; for anything else they give
way to the real modules.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

COMPILER = "torch._dynamo"
MARKS = ("allow_in_graph", "assume_constant_result", "disable")
TAKEN = {
    f"{COMPILER}.utils": "is_compile_supported",
    f"{COMPILER}._trace_wrapped_higher_order_op": "TransformGetItemToIndex",
}
"""What is imported by name, to be called later."""


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        # What Python asks of any module is no use of it, but for the place of a submodule.
        if name.startswith("__") and (self.__name__, name) != (COMPILER, "__path__"):
            raise AttributeError(name)
        _give_way()
        return getattr(importlib.import_module(self.__name__), name)


def postpone_compiler() -> None:
    """Call before torchvision and transformers are imported; later it changes nothing."""
    import torch

    if COMPILER in sys.modules:
        return
    stand_ins = {name: _StandIn(name) for name in (COMPILER, *TAKEN)}
    vars(stand_ins[COMPILER]).update(dict.fromkeys(MARKS, _unmarked))
    for module, name in TAKEN.items():
        vars(stand_ins[module])[name] = _called_later(module, name)
    sys.modules |= stand_ins
    vars(torch)["_dynamo"] = stand_ins[COMPILER]


def _unmarked(function: Any = None, *_: Any, **__: Any) -> Any:
    """The function itself, also as `@mark(...)`."""
    return _unmarked if function is None else function


def _called_later(module: str, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        _give_way()
        return getattr(importlib.import_module(module), name)(*arguments, **named)

    return call


def _give_way() -> None:
    for name in (COMPILER, *TAKEN):
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]
    torch = vars(sys.modules["torch"])
    if isinstance(torch.get("_dynamo"), _StandIn):
        del torch["_dynamo"]
