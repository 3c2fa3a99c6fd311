"""`flmm backbones check`"""

from __future__ import annotations

from typing import Any

import click

from flmm_core import plugins
from flmm_core.cli.console import echo_json, importing, json_option
from flmm_core.cli.options import config_options, given_settings
from flmm_core.errors import RunError


@click.command("check")
@click.argument("name")
@click.option("--model", default="tiny", show_default=True, help="An alias, a hub id or a folder.")
@config_options("options")
@json_option
def command(name: str, model: str, as_json: bool, **parameters: Any) -> None:
    """Check that the backbone NAME keeps its contract, on one of its models.

    Loads the model twice, in float32 on the CPU: as the plugin does and as transformers does. Each
    check compares the plugin's pixels, tokens, cells, attention and answers with transformers' own.
    Exits with 1 if a check fails.
    """
    spec = plugins.load_backbones().get(name)
    with importing():
        from flmm_core.testing import CHECKS, load_for_checks, run_checks
    given = given_settings(parameters).items()
    options = {key.removeprefix("options."): value for key, value in given}
    backbone = load_for_checks(spec, model, options)
    width = max(len(check.__name__) for check in CHECKS)
    if not as_json:
        click.echo(f"{name}, model {model}:")
    outcomes: list[dict[str, Any]] = []
    for one in run_checks(backbone):
        facts = {key: value for key, value in vars(one).items() if key != "error" and value}
        outcomes.append({**facts, "seconds": round(one.seconds, 2)})
        if not as_json:
            said = one.problem or f"{one.reason or one.promise}"
            click.echo(f"  {one.result:12}  {one.check:{width}}  {' '.join(said.split())}")
    failed = sum(one["result"] == "failed" for one in outcomes)
    seconds = round(sum(one["seconds"] for one in outcomes), 1)
    if as_json:
        facts = {"backbone": name, "model": model, "ok": not failed, "seconds": seconds}
        echo_json({**facts, "checks": outcomes})
    else:
        count = len(outcomes)
        click.echo(f"{failed or 'none'} of {count} checks failed, {seconds:.1f} s")
    if failed:
        raise click.exceptions.Exit(RunError.exit_code)
