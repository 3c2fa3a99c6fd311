"""Command-line options generated from the configuration: type, default and a line of help."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import click

from flmm_core.config import Setting, option_name, settings
from flmm_core.config.yaml_files import parse_scalar

Command = TypeVar("Command", bound=Callable[..., Any])


def config_options(*keys: str, unset: str = "") -> Callable[[Command], Command]:
    """Decorate a command with one option per setting.

    An option that was not given is None or empty, so that `given_settings` can tell. Without keys
    all settings are meant; `unset` is shown as the default, where that is not the setting's.
    """

    def decorate(command: Command) -> Command:
        chosen = [setting for setting in settings() if not keys or setting.key in keys]
        for setting in reversed(chosen):
            command = _option(setting, unset)(command)
        return command

    return decorate


AS_TRAINED = "model", "revision", "adapter", "quantize", "prompt", "system", "refiner_weights"
"""Settings that a trained head brings along, unless they are given."""
PLACEMENT = "dtype", "device", "device_map", "attention"
"""How the model behind a head is loaded, wherever the head was trained."""


def given_settings(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The settings given on the command line, by dotted key.

    One empty text (`--eval-data ""`) is an empty list.
    """
    given: dict[str, Any] = {}
    for setting in settings():
        value = parameters.get(_parameter(setting))
        if get_origin(setting.type) is dict:
            given |= {f"{setting.key}.{key}": inner for key, inner in value or ()}
        elif get_origin(setting.type) is list and value:
            given[setting.key] = [text for text in value if text]
        elif value is not None and value != ():
            given[setting.key] = value
    return given


def given_behind(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """`given_settings` by the names of the arguments of `Grounder.from_pretrained`."""
    given = given_settings(parameters)
    if "revision" in given:
        given["model_revision"] = given.pop("revision")
    return given


def _number_or_word(
    ctx: click.Context, param: click.Parameter, value: str | None
) -> int | str | None:
    """An integer or "auto"."""
    if value in (None, "auto"):
        return value
    try:
        return int(str(value))
    except ValueError:
        raise click.BadParameter(f"'{value}' is neither an integer nor auto.", ctx, param) from None


def _pairs(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[str, Any]]:
    """Texts `KEY=VALUE` -> pairs; the value is parsed as a plain YAML scalar."""
    pairs = []
    for text in values:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise click.BadParameter(f"'{text}' is not of the form KEY=VALUE.", ctx, param)
        pairs.append((key, parse_scalar(value)))
    return pairs


def _option(setting: Setting, unset: str) -> Callable[[Command], Command]:
    name, kind, origin = option_name(setting.key), setting.type, get_origin(setting.type)
    details: dict[str, Any]
    if kind is bool:
        name = f"{name}/{option_name('no_' + setting.key)}"
        details = {"default": None}
    elif origin is Literal:
        details = {"type": click.Choice(get_args(kind))}
    elif origin is list:
        details = {"multiple": True, "metavar": "TEXT"}
    elif origin is dict:
        details = {"multiple": True, "callback": _pairs, "metavar": "KEY=VALUE"}
    elif origin in (Union, UnionType):
        details = {"callback": _number_or_word, "metavar": "INTEGER|auto"}
    elif kind is Path:
        details = {"type": click.Path(path_type=Path)}
    else:
        details = {"type": kind}
    default = unset or _default(setting)
    text = f"{setting.help}  [default: {default}]" if default else setting.help
    return click.option(name, _parameter(setting), help=text, **details)


def _default(setting: Setting) -> str:
    value = setting.default
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value in (None, {}) else str(value)


def _parameter(setting: Setting) -> str:
    return setting.key.replace(".", "__")
