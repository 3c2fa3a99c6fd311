"""What options and help pages are made of: every setting with its type, default and help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel

from flmm_core.config.settings import RunConfig, Section

PLUGIN_OPTIONS = {"options": "--options", "refiner_options": "--refiner-option"}
"""Settings that a plugin's options model validates, and their command-line options."""


class Setting(NamedTuple):
    """One field of a configuration, for options, help pages and messages.

    Attributes:
        key: Dotted ("head.pool").
        type: As annotated, without Optional and Annotated's extras.
        default: None if there is none or a factory makes it.
    """

    key: str
    type: Any
    default: Any
    help: str


def settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration in order, sections unfolded."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from settings(kind, f"{prefix}{name}.")
            continue
        if type(None) in get_args(kind):
            kind = next(arm for arm in get_args(kind) if arm is not type(None))
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        default = None if field.is_required() or field.default_factory else field.default
        yield Setting(prefix + name, kind, default, field.description or "")


def option_name(key: str) -> str:
    """The command-line option of a dotted key: "head.pool" is --head-pool."""
    setting, _, rest = key.partition(".")
    if setting in PLUGIN_OPTIONS:
        return f"{PLUGIN_OPTIONS[setting]} {rest}".rstrip()
    return "--" + key.replace(".", "-").replace("_", "-")
