"""`flmm backbones`, `refiners` and `finders`: what plugins declare; loads no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Literal, get_args, get_origin

import click

from flmm_core.cli.console import echo_json, echo_table, json_option
from flmm_core.config import settings
from flmm_core.plugins import Registry
from flmm_core.spec import BackboneSpec, PluginSpec, plural

SLOW_SECONDS = 0.2


def plugin_group(kind: str, option: str, load: Callable[[], Registry[Any]]) -> click.Group:
    """The command `flmm KINDs` with `list` and `show`; `option` says how options are given."""

    @click.group(
        f"{kind.split()[-1]}s",
        invoke_without_command=True,
        help=f"List the installed {kind}s, or show one.",
    )
    @click.pass_context
    def command(ctx: click.Context) -> None:
        if ctx.invoked_subcommand is None:
            _list(load(), as_json=False)

    @command.command(
        "list", help=f"List the installed {kind}s, and plugins that did not load, with the reason."
    )
    @json_option
    def list_all(as_json: bool) -> None:
        _list(load(), as_json)

    @command.command("show", help=f"Show the {kind} NAME and its options.")
    @click.argument("name")
    @json_option
    def show(name: str, as_json: bool) -> None:
        _show(load(), name, option, as_json)

    return command


def _list(registry: Registry[Any], as_json: bool) -> None:
    if as_json:
        specs = [_facts(spec, registry) for spec in registry.specs.values()]
        failed = [{"plugin": f.plugin.label, "reason": f.reason} for f in registry.failures]
        echo_json({plural(registry.kind): specs, "not_loaded": failed})
        return
    echo_table((name, spec.summary) for name, spec in registry.specs.items())
    if registry.failures:
        click.echo("\nNot loaded:")
        echo_table(((f.plugin.label, f.reason) for f in registry.failures), indent="  ")
    plugins = [*registry.plugins.values(), *(f.plugin for f in registry.failures)]
    slow = {plugin.label: plugin for plugin in plugins if plugin.seconds > SLOW_SECONDS}
    if slow:
        click.echo("\nSlow to import:")
        echo_table(((p.label, f"{p.seconds:.1f} s") for p in slow.values()), indent="  ")


def _show(registry: Registry[Any], name: str, option: str, as_json: bool) -> None:
    spec: PluginSpec = registry.get(name)
    if as_json:
        echo_json(_facts(spec, registry))
        return
    click.echo(f"{spec.name}: {spec.summary}")
    click.echo(f"from {registry.plugins[name].label}, {spec.target}")
    if isinstance(spec, BackboneSpec):
        if spec.capabilities:
            click.echo(f"capabilities: {', '.join(sorted(spec.capabilities))}")
        click.echo("\nModels (--model ALIAS, a hub id or a folder):")
        models = spec.models.items()
        echo_table(((a, m.source, m.license, m.summary) for a, m in models), indent="  ")
    options = list(settings(spec.options))
    if options:
        click.echo(f"\nOptions ({option}):")
        echo_table(((o.key, _type_name(o.type), o.help) for o in options), indent="  ")


def _facts(spec: PluginSpec, registry: Registry[Any]) -> dict[str, Any]:
    plugin = registry.plugins[spec.name]
    facts: dict[str, Any] = {
        "name": spec.name,
        "summary": spec.summary,
        "plugin": plugin.label,
        "import_seconds": round(plugin.seconds, 3),
        "target": spec.target,
    }
    if isinstance(spec, BackboneSpec):
        facts["capabilities"] = sorted(spec.capabilities)
        facts["models"] = {alias: asdict(model) for alias, model in spec.models.items()}
    return {**facts, "options": registry.schema(spec.name)}


def _type_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return "|".join(map(str, get_args(kind)))
    return kind.__name__ if isinstance(kind, type) else str(kind)
