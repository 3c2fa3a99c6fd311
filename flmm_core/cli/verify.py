"""`flmm verify`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flmm_core.cli.console import echo_json, echo_table, json_option
from flmm_core.cli.options import config_options, given_settings
from flmm_core.errors import RunError

SAID = {True: "ok", False: "differs", None: "not checked"}


@click.command("verify")
@click.argument("run")
@config_options("device")
@config_options("model", "dtype", "refiner_weights", unset="as in training")
@click.option(
    "--record",
    is_flag=True,
    help="If nothing differs, add what the head does not record (of an imported head: all).",
)
@json_option
def command(run: str, record: bool, as_json: bool, **parameters: Any) -> None:
    """Check that a head's model is what it was in training.

    RUN is a run folder of `flmm train`, a head folder or a hub id. Compares the model's weights,
    its settings and what it does with a drawn image with what the head has recorded, and its
    greedy answers with and without the head. Exits with 1 if something differs.
    """
    given: dict[str, Any] = given_settings(parameters)
    from flmm_core.pipeline.verify import verify

    result = verify(run if not Path(run).exists() else Path(run), record=record, **given)
    if as_json:
        echo_json(result.to_dict())
    else:
        click.echo(f"{result.head}, model {result.model}:")
        rows = [(name, SAID[each.ok], each.found) for name, each in result.findings.items()]
        echo_table(rows, indent="  ")
    if not result.ok:
        raise click.exceptions.Exit(RunError.exit_code)
