"""`flmm cache`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli.console import check_writable, echo_json, echo_table, make_progress
from flmm_core.cli.options import config_options, given_settings
from flmm_core.config import load_config
from flmm_core.errors import DataError
from flmm_core.plugins import load_backbones

if TYPE_CHECKING:
    from flmm_core.feature_cache.store import Store

SETTINGS = (
    "backbone", "model", "options", "dtype", "device", "prompt",
    "data", "val_data", "protocol", "train_protocol",
    "refiner", "refiner_weights", "head.pool", "sam.text", "sam.half", "workers",
)  # fmt: skip
"""What decides which features are kept; a run's other settings may be given in its file."""


@click.group("cache")
def command() -> None:
    """Keep what the frozen parts say, to train without running them."""


@command.command("build")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML file of settings, that of the run; options on the command line override it.",
)
@config_options(*SETTINGS)
@click.option(
    "--maps",
    type=click.Choice(["float32", "float16", "uint8"]),
    default="float32",
    show_default=True,
    help="Number type of stored maps. Only float32 gives the same head bit for bit.",
)
@click.option(
    "--channels",
    type=click.IntRange(min=1),
    help="Keep only so many attention channels: those with the highest share of their mass on"
    " the object. The head is then made for these.",
)
@click.option("--forecast", is_flag=True, help="Say how large it will be, and stop.")
def build(
    folder: Path,
    config_file: Path | None,
    maps: Any,
    channels: int | None,
    forecast: bool,
    **parameters: Any,
) -> None:
    """Run the frozen parts once over training and validation data, and keep what they say in DIR.

    A build that was stopped goes on with the same command; one that is whole only gains samples
    that are new. Train on it with flmm train --cache DIR and the same settings.
    """
    config, spec = load_config(config_file, given_settings(parameters), load_backbones().get)
    check_writable(folder, repair="Give another DIR.")
    from flmm_core.data.sources import open_sources
    from flmm_core.feature_cache.build import BuildRequest, build_cache
    from flmm_core.training.loop import build_from_config, facts_of

    training = open_sources(config.data, config.train_protocol)
    watched = open_sources(config.val_data, config.protocol) if config.val_data else ()
    made = build_cache(
        BuildRequest(
            folder=folder,
            key=facts_of(config, spec),
            maps=maps,
            channels=channels,
            hidden=config.refiner != "none" and config.sam.text,
            workers=config.workers,
        ),
        lambda: build_from_config(config, spec),
        training,
        watched,
        progress=make_progress(),
        forecast_only=forecast,
    )
    if forecast:
        click.echo(f"{folder}: {made}")
        return
    click.echo(folder)


@command.command("info")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(folder: Path, as_json: bool) -> None:
    """Show what is in a cache and what it depends on.

    Exits with 3 if a file of it is truncated or broken.
    """
    from flmm_core.feature_cache.store import Store

    store = Store(folder)
    facts = _facts(store)
    if as_json:
        echo_json(facts)
    else:
        key = {name: str(value) for name, value in facts["key"].items()}
        click.echo(f"{folder}: {facts['samples']} samples, {facts['shown_size']}")
        rows = {
            "maps": facts["maps"],
            "hidden rows": "kept" if facts["hidden"] else "not kept",
            "images encoded": str(facts["pictures"]),
            "channels": str(facts["channels"] or "all"),
        }
        echo_table((rows | key).items(), indent="  ")
        for path, reason in facts["broken"].items():
            click.echo(f"broken: {path}: {reason}")
    if store.broken:
        raise click.exceptions.Exit(DataError.exit_code)


@command.command("clear")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
def clear(folder: Path) -> None:
    """Remove a cache. Nothing else in DIR is touched."""
    from flmm_core.feature_cache.build import show_bytes
    from flmm_core.feature_cache.store import clear as remove

    click.echo(f"{folder}: {show_bytes(remove(folder))} freed")


def _facts(store: Store) -> dict[str, Any]:
    from flmm_core.feature_cache.build import show_bytes
    from flmm_core.feature_cache.store import shards, size_on_disk

    size, made = size_on_disk(shards(store.folder)), store.manifest
    return {
        "cache": str(store.folder),
        "samples": len(store.samples),
        "pictures": len(store.pictures),
        "bytes": size,
        "shown_size": show_bytes(size),
        "maps": made.maps,
        "hidden": made.hidden,
        "channels": len(made.channels) or None,
        "measure": made.measure,
        "vlm_sha256": made.vlm.sha256,
        "key": dict(made.key),
        "made": dict(made.made),
        "broken": {str(path): reason for path, reason in store.broken.items()},
    }
