"""`flmm doctor`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click
from rich.filesize import decimal

from flmm_core.cli.console import echo_json, echo_table, json_option
from flmm_core.cli.diagnosis import diagnose
from flmm_core.plugin_facts.offers import KINDS
from flmm_core.spec import plural


@click.command("doctor")
@json_option
def command(as_json: bool) -> None:
    """Examine the installation: versions, devices, plugins, folders.

    Exits with 1 if something keeps flmm from working, and says what repairs it. A hub that cannot
    be reached and optional packages that are missing are no problems.
    """
    found = diagnose()
    if as_json:
        echo_json(found)
    else:
        echo_table(_rows(found))
        click.echo()
        for problem in found["problems"]:
            click.echo(f"Problem: {problem}")
        if not found["problems"]:
            click.echo("No problems were found.")
    if found["problems"]:
        raise click.exceptions.Exit(1)


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Two columns; a part that could not be examined has no rows."""
    python, torch = found["python"], found["torch"]
    yield "flmm", found["flmm"]
    yield "python", f"{python['version']}, {python['executable']}"
    yield "system", python["system"]
    if machine := found["machine"]:
        yield "cores", f"{machine['usable_cores']} of {machine['cores']} usable"
        total, free = decimal(machine["memory_bytes"]), decimal(machine["available_bytes"])
        yield "memory", f"{total}, {free} available"
    yield "torch", f"{torch['version'] or 'broken'}, {_built_for(torch)}"
    for device in found["devices"]:
        memory = device["memory_bytes"]
        more = f", {decimal(memory)}, {decimal(device['free_bytes'])} free" if memory else ""
        yield "device", f"{device['name']}: {device['title']}{more}"
    for package in found["packages"] or ():
        if package["name"] != "torch":
            version = package["version"] or "missing"
            yield package["name"], version + ("" if package["fits"] else f" ({package['needs']})")
    for package in found["optional"]:
        yield f"({package['name']})", package["version"] or f"missing; for {package['for']}"
    plugins = found["plugins"] or {"not_loaded": ()}
    for kind in KINDS:
        for plugin in plugins.get(plural(kind.kind), ()):
            fault = ", cannot be used" if plugin["error"] else ""
            yield kind.kind, f"{plugin['name']}, from {plugin['plugin']}{fault}"
    for plugin in plugins["not_loaded"]:
        yield "not loaded", plugin["plugin"]
    if hub := found["hub"]:
        yield "hub", f"{hub['endpoint']}, {_access(hub)}, {'a' if hub['token'] else 'no'} token"
    for folder in found["folders"] or ():
        size = "size unknown" if folder["bytes"] is None else decimal(folder["bytes"])
        size = size if folder["exists"] else "not made yet"
        yield folder["name"], f"{folder['path']}, {size}, {decimal(folder['free_bytes'])} free"
    if found["data"]:
        drawn = [source["source"] for source in found["data"] if source["drawn"]]
        yield "drawn scenes", ", ".join(drawn) or "none yet; drawn on first use"


def _built_for(torch: dict[str, Any]) -> str:
    return f"built for CUDA {torch['cuda']}" if torch["cuda"] else "built for the CPU"


def _access(hub: dict[str, Any]) -> str:
    if hub["offline"]:
        return "offline (HF_HUB_OFFLINE)"
    return "reachable" if hub["reachable"] else f"not reachable ({hub['error']})"
