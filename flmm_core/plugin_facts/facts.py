"""What is known of a plugin without importing it here, as JSON."""

from __future__ import annotations

from functools import cache
from typing import Any, TypeVar

from pydantic import BaseModel, TypeAdapter, create_model

from flmm_core.spec import PluginOptions, PluginSpec

SpecT = TypeVar("SpecT", bound=PluginSpec)


class Declared(BaseModel):
    """One spec, as data.

    Attributes:
        spec: Its fields but for `options`, a class.
        names: Those of its options.
        options: What JSON schema calls their properties.
    """

    spec: dict[str, Any]
    names: list[str] = []
    options: dict[str, Any] = {}


class Offer(BaseModel):
    """What a plugin's hook of one kind returned, or why it cannot be used."""

    declared: list[Declared] = []
    error: str = ""


class Facts(BaseModel):
    """What one entry point offers.

    Attributes:
        seconds: How long its import took.
        error: Why nothing of it can be used; empty if something can.
        waited: How many seconds its import was given, if it had not ended by then; otherwise 0.
        offers: By kind of spec; without those of which it has none.
    """

    seconds: float = 0.0
    error: str = ""
    waited: float = 0.0
    offers: dict[str, Offer] = {}

    @property
    def is_faulty(self) -> bool:
        """Whether anything of it cannot be used."""
        return bool(self.error or self.waited) or any(offer.error for offer in self.offers.values())


def to_data(spec: PluginSpec) -> Declared:
    """A spec as data; ValueError or TypeError if a field is of a wrong type."""
    kind: Any = next(each for each in type(spec).__mro__ if each.__base__ is PluginSpec)
    declared = Declared(
        spec=_adapter(kind).dump_python(spec, mode="json", exclude={"options"}, warnings=False),
        names=[*spec.options.model_fields],
        options=spec.options.model_json_schema().get("properties", {}),
    )
    from_data(kind, declared)
    return declared


def from_data(spec_type: type[SpecT], declared: Declared) -> SpecT:
    """The spec again, with options of the same names, which take anything."""
    kind: Any = spec_type
    base: type[PluginOptions] = spec_type.options
    taking: dict[str, Any] = dict.fromkeys(declared.names, (Any, None))
    options = create_model(base.__name__, __base__=base, **taking)
    spec: SpecT = _adapter(kind).validate_python({**declared.spec, "options": options})
    return spec


@cache
def _adapter(spec_type: Any) -> TypeAdapter[Any]:
    return TypeAdapter(spec_type)
