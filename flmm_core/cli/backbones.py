"""`flmm backbones`: reads what plugins declare; loads no torch."""

from __future__ import annotations

from typing import Any

import click

from flmm_core.cli.console import echo_json, echo_table
from flmm_core.config import settings
from flmm_core.plugins import Registry, load_backbones
from flmm_core.spec import BackboneSpec

SLOW_SECONDS = 0.2


@click.group("backbones", invoke_without_command=True)
@click.pass_context
def command(ctx: click.Context) -> None:
    """List the installed backbones, or show one."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_backbones)


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_backbones(as_json: bool = False) -> None:
    """List the installed backbones, and the plugins that did not load, with the reason."""
    registry = load_backbones()
    if as_json:
        echo_json(
            {
                "backbones": [_facts(spec, registry) for spec in registry.specs.values()],
                "not_loaded": [
                    {"plugin": failure.plugin.label, "reason": failure.reason}
                    for failure in registry.failures
                ],
            }
        )
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


@command.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show(name: str, as_json: bool) -> None:
    """Show the models and options of the backbone NAME."""
    registry = load_backbones()
    spec = registry.get(name)
    if as_json:
        echo_json(_facts(spec, registry))
        return
    click.echo(f"{spec.name}: {spec.summary}")
    click.echo(f"from {registry.plugins[name].label}, {spec.target}")
    if spec.capabilities:
        click.echo(f"can also: {', '.join(sorted(spec.capabilities))}")
    click.echo("\nModels (--model ALIAS, a hub id or a folder):")
    models = spec.models.items()
    echo_table(((a, m.source, m.licence, m.summary) for a, m in models), indent="  ")
    options = list(settings(spec.options))
    if options:
        click.echo("\nOptions (--options KEY=VALUE):")
        echo_table(((o.key, _type_name(o.type), o.help) for o in options), indent="  ")


def _facts(spec: BackboneSpec, registry: Registry) -> dict[str, Any]:
    plugin = registry.plugins[spec.name]
    return {
        "name": spec.name,
        "summary": spec.summary,
        "plugin": plugin.label,
        "import_seconds": round(plugin.seconds, 3),
        "target": spec.target,
        "capabilities": sorted(spec.capabilities),
        "models": {
            alias: {
                "source": model.source,
                "licence": model.licence,
                "summary": model.summary,
                "defaults": dict(model.defaults),
            }
            for alias, model in spec.models.items()
        },
        "options": spec.options.model_json_schema().get("properties", {}),
    }


def _type_name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) else str(kind)
