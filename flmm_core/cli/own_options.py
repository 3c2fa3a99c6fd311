"""What to type for an option of a plugin's own, such as --allow-unlisted of backbone auto."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import click

from flmm_core.config.listing import PLUGIN_OPTIONS
from flmm_core.plugins import Registry, load_backbones, load_refiners

LOADERS: Mapping[str, Callable[[], Registry[Any]]] = {
    "options": load_backbones,
    "refiner_options": load_refiners,
}


def did_you_mean_own(error: click.NoSuchOption) -> str:
    """The words for plugins that know the option by this name; empty if the command takes none."""
    words = list(dict.fromkeys(_words(error)))
    return f"Did you mean {' or '.join(words)}?" if words else ""


def _words(error: click.NoSuchOption) -> Iterator[str]:
    taken = (
        {name for each in error.ctx.command.params for name in each.opts} if error.ctx else set()
    )
    name = error.option_name.lstrip("-").replace("-", "_")
    for setting, option in PLUGIN_OPTIONS.items():
        if option not in taken:
            continue
        registry = LOADERS[setting]()
        for plugin in registry.specs:
            schema = registry.schema(plugin)
            for known in {name, name.removeprefix("no_")} & schema.keys():
                value = "VALUE"
                if schema[known].get("type") == "boolean":
                    value = "true" if known == name else "false"
                yield f"'{option} {known}={value}' ({registry.kind} {plugin})"
