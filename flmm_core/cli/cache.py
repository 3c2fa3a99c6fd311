"""`flmm cache`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.filesize import decimal

from flmm_core.cli.console import (
    echo_json,
    echo_table,
    json_option,
    make_progress,
    one_process_only,
)
from flmm_core.cli.options import config_options, given_settings
from flmm_core.config import load_config
from flmm_core.errors import DataError
from flmm_core.files import check_writable
from flmm_core.plugins import load_backbones

if TYPE_CHECKING:
    from flmm_core.feature_cache.store import Store

SETTINGS = (
    "backbone", "model", "revision", "adapter", "quantize", "options", "precision", "dtype",
    "device", "device_map", "attention", "prompt", "system", "caption_mode", "data_root", "data",
    "val_data", "max_skipped", "protocol", "train_protocol",
    "refiner", "refiner_options", "refiner_weights", "head.pool", "head.pool_ends",
    "head.presence", "absent_share", "workers", "check",
)  # fmt: skip
"""The settings of a run that decide what is cached."""


@click.group("cache")
def command() -> None:
    """Precompute the outputs of the frozen models for training."""


@command.command("build")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML file of settings or its name, as for `flmm train`; options on the command line"
    " override it.",
)
@config_options(*SETTINGS)
@click.option(
    "--maps",
    type=click.Choice(["float32", "float16", "uint8"]),
    default="float32",
    help="Dtype of the stored attention maps; only float32 gives a bit-identical head.",
)
@click.option(
    "--channels",
    type=click.IntRange(min=1),
    help="Number of attention channels to keep: those with the largest fraction of their mass on"
    " the object. The head is built for these.  [default: all]",
)
@click.option("--forecast", is_flag=True, help="Print the estimated size and stop.")
def build(
    folder: Path,
    config_file: Path | None,
    maps: Any,
    channels: int | None,
    forecast: bool,
    **parameters: Any,
) -> None:
    """Run the frozen models once over training and validation data.

    Their outputs are stored in DIR. The same command resumes a build that was stopped, or adds
    samples that are new. Train with `flmm train --cache DIR` and the same settings.
    """
    config, spec = load_config(config_file, given_settings(parameters), load_backbones().get)
    one_process_only("flmm cache build")
    check_writable(folder, "Give another DIR.")
    from flmm_core.feature_cache.build import build_cache

    size = build_cache(
        folder,
        config,
        spec,
        maps=maps,
        channels=channels,
        progress=make_progress(),
        forecast_only=forecast,
    )
    click.echo(f"{folder}: {size}" if forecast else folder)


@command.command("info")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@json_option
def info(folder: Path, as_json: bool) -> None:
    """Show what a cache contains and what it depends on.

    Exits with 3 if one of its files is truncated or broken.
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
            "hidden states": "kept" if facts["hidden"] else "not kept",
            "images encoded": str(facts["images"]),
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
    """Delete a cache; other files in DIR stay."""
    from flmm_core.feature_cache.store import clear as remove

    click.echo(f"{folder}: {decimal(remove(folder))} freed")


def _facts(store: Store) -> dict[str, Any]:
    from flmm_core.feature_cache.store import shards

    size = sum(path.stat().st_size for path in shards(store.folder))
    made = store.manifest
    return {
        "cache": str(store.folder),
        "samples": len(store.samples),
        "images": len(store.images),
        "bytes": size,
        "shown_size": decimal(size),
        "maps": made.maps,
        "hidden": made.hidden,
        "channels": len(made.channels) or None,
        "measure": made.measure,
        "vlm_sha256": made.sha256,
        "key": dict(made.key),
        "made": dict(made.made),
        "broken": {str(path): reason for path, reason in store.broken.items()},
    }
