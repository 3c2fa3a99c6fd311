"""A mutant: a good backbone with one small fault, and the check that is meant to see it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flmm_core import Backbone

Make = Callable[[Any], type[Backbone]]
MUTANTS: dict[str, Mutant] = {}


@dataclass(frozen=True)
class Mutant:
    """One fault.

    Attributes:
        name: What is wrong.
        check: The check that is meant to see it.
        make: Gives a subclass of a good backbone's class that has the fault.
        families: The good backbones in which it is a fault; empty means all.
    """

    name: str
    check: str
    make: Make
    families: tuple[str, ...] = ()

    def of(self, kind: type[Backbone]) -> type[Backbone]:
        """The mutant of a class, which can be pickled by its name."""
        made = self.make(kind)
        made.__module__ = __name__
        made.__qualname__ = made.__name__ = "_" + "".join(
            c if c.isalnum() else "_" for c in self.name
        )
        setattr(sys.modules[__name__], made.__name__, made)
        return made


def mutant(check: str, name: str, *families: str) -> Callable[[Make], Make]:
    """Register a function that makes a faulty subclass."""

    def register(make: Make) -> Make:
        assert name not in MUTANTS, name
        MUTANTS[name] = Mutant(name, check, make, families)
        return make

    return register


class Wrapped:
    """A processor that changes images before, or tensors after, the real one; can be pickled."""

    def __init__(
        self,
        processor: Any,
        before: Callable[[Any], Any] | None = None,
        after: Callable[[Any], Any] | None = None,
    ) -> None:
        self.processor, self.before, self.after = processor, before, after

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "processor":  # pickle asks before there is one
            raise AttributeError(name)
        return getattr(self.processor, name)

    def __call__(self, **kwargs: Any) -> Any:
        if self.before is not None:
            kwargs["images"] = [self.before(image) for image in kwargs["images"]]
        encoded = self.processor(**kwargs)
        if self.after is not None:
            self.after(encoded)
        return encoded


def loading(change: Callable[[Any, Any], Any]) -> Make:
    """A fault of `load_model`: `change(vlm, processor)` may return another processor."""

    def make(base: Any) -> type[Backbone]:
        class Faulty(base):
            @classmethod
            def load_model(cls, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
                vlm, processor = super().load_model(*args, **kwargs)
                return vlm, change(vlm, processor) or processor

        return Faulty

    return make


def loaded(change: Callable[[Any], Any]) -> Make:
    """A fault that is there once the backbone is built."""

    def make(base: Any) -> type[Backbone]:
        class Faulty(base):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                change(self)

        return Faulty

    return make


def method(name: str, wrong: Callable[..., Any]) -> Make:
    """A fault of one method: `wrong(self, right, *args, **kwargs)`, `right` being the good one."""

    def make(base: Any) -> type[Backbone]:
        def replacement(self: Any, *args: Any, **kwargs: Any) -> Any:
            right = getattr(super(faulty, self), name)
            return wrong(self, right, *args, **kwargs)

        faulty = type("Faulty", (base,), {name: replacement})
        return faulty

    return make
