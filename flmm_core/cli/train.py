"""`flmm train`"""

from __future__ import annotations

import logging
from pathlib import Path
from shlex import quote
from typing import Any

import click

from flmm_core.cli.console import make_progress
from flmm_core.cli.options import config_options, given_settings
from flmm_core.cli.processes import joined, processes_option, start
from flmm_core.config import RunConfig, load_config
from flmm_core.config.resume import CONFIG, load_resumed
from flmm_core.errors import FlmmError
from flmm_core.plugins import load_backbones
from flmm_core.spec import BackboneSpec


@click.command("train")
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML file of settings, or one that comes with flmm: own-data, paper. Options on the"
    " command line override it.",
)
@config_options()
@processes_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Check everything, load the models, time a few steps, print what the run will take and"
    " its settings, and stop.",
)
@click.option("--print-config", is_flag=True, help="Print the resolved settings and stop.")
def command(
    config_file: Path | None,
    dry_run: bool,
    print_config: bool,
    processes: int | None,
    **parameters: Any,
) -> None:
    """Train a mask head on a frozen model.

    The vision-language model stays unchanged. The trained head is evaluated on unseen data. The
    run folder holds config.yaml, checkpoints, metrics.jsonl, summary.json, training.html and
    example images.
    A stopped run goes on with `flmm train --resume --output RUN`.
    """
    overrides = given_settings(parameters)
    load = load_resumed if overrides.get("resume") else load_config
    with joined(processes) as world:
        with world.agreed():
            config, spec = load(config_file, overrides, load_backbones().get)
        config = world.tell(config)  # the name of the folder may be the time
        if dry_run or print_config:
            if world.is_main:
                lines = _tried(config, spec, processes or world.size) if dry_run else ""
                click.echo(_summary(config, spec) + lines + config.to_yaml(), nl=False)
            return
        start(processes, config.device, world)
        from flmm_core.training.train import train

        try:
            run = train(config, spec, make_progress(), world)
        except KeyboardInterrupt as stop:
            if not (config.output / CONFIG).is_file():
                raise
            if world.is_main:
                _write_page(config.output)
            resume = f"flmm train --resume --output {quote(str(config.output))}"
            raise KeyboardInterrupt(f"{stop} Resume with `{resume}`.".lstrip()) from None
        if world.is_main:
            if page := _write_page(run):
                click.echo(f"Report: {page}", err=True)
            click.echo(f'Next: flmm ground IMAGE "a phrase" --head {quote(str(run))}', err=True)
            click.echo(run)


def _write_page(run: Path) -> Path | None:
    """`training.html`, or a warning: the run itself is finished."""
    from flmm_core.report.training import write_training_page

    try:
        return write_training_page(run)
    except (FlmmError, OSError) as error:
        logging.getLogger(__name__).warning("The page of the run cannot be written: %s", error)
        return None


def _length(config: RunConfig) -> str:
    return f"{config.epochs:g} epochs" if config.epochs else f"{config.steps} steps"


def _tried(config: RunConfig, spec: BackboneSpec, processes: int) -> str:
    """What a run will take, as YAML comments."""
    from flmm_core.training.train import dry_run

    lines = dry_run(config, spec, make_progress(), processes)
    return "".join(f"# {line}\n" for line in lines)


def _summary(config: RunConfig, spec: BackboneSpec) -> str:
    """The run in words, as YAML comments, so that the whole output is a configuration."""
    info = spec.models.get(config.model)
    source = f" ({info.source}, license {info.license})" if info else ""
    verb = "Resume training" if config.resume else "Train"
    length = f"{_length(config)} of batch size {config.samples_per_step}"
    return (
        f"# {verb} a mask head on {config.backbone}, model {config.model}{source}:\n"
        f"# {length} on {', '.join(config.data)};\n"
        f"# then evaluate it on {', '.join(config.eval_data) or 'nothing'}.\n"
        f"# Run folder: {config.output}. Nothing was written.\n"
    )
