"""`flmm benchmark`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli import evaluation_options as shared
from flmm_core.cli.console import echo_table, make_progress
from flmm_core.cli.options import PLACEMENT, config_options, given_settings
from flmm_core.errors import UsageError
from flmm_core.files import check_writable

if TYPE_CHECKING:
    from flmm_core.report.table import BenchmarkReport

PER_RUN = (
    *PLACEMENT, "refiner_weights", "workers", "force", "strict", "check", "max_skipped",
)  # fmt: skip
"""Settings of a run that are no part of the plan. Figures of another dtype are refused."""


@click.command("benchmark")
@click.option("--backbone", "backbones", multiple=True, help="Backbone to evaluate; repeatable.")
@click.option(
    "--head",
    "heads",
    multiple=True,
    help="Trained head of a backbone: a run folder, head folder or hub id; repeatable."
    "  [default: trained in DIR/heads]",
)
@shared.data_option
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    required=True,
    metavar="DIR",
    help="Folder of the benchmark.",
)
@click.option(
    "--protocol",
    type=shared.PROTOCOLS,
    default="standard",
    help=shared.PROTOCOL_HELP,
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=shared.METHODS,
    default=["head"],
    help=f"{shared.METHOD_HELP} Repeatable.",
)
@shared.method_data_option
@shared.abstain_option
@shared.limit_option
@shared.batch_size_option
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file of settings for heads to train, as for `flmm train`.",
)
@config_options("prompt", "system", unset="as each head was trained")
@config_options("steps", unset="as in `flmm train`")
@config_options(*PER_RUN)
def command(output: Path, config_file: Path | None, **parameters: Any) -> None:
    """Evaluate every backbone on every data set, and write a report.

    Stopped at any point, it is resumed by the same command. Under `torchrun` or `accelerate
    launch` the processes share the work. DIR holds report.html, and per measurement a row for each
    phrase (cells/NAME/items.jsonl) and the scores (cells/NAME/result.json).
    """
    if not parameters["backbones"] and not parameters["heads"]:
        raise UsageError(
            "There is nothing to evaluate.",
            found="Neither --backbone nor --head was given.",
            repair="Name at least one backbone (`flmm backbones` lists them), or a trained head.",
        )
    check_writable(output)
    from flmm_core.benchmark import BenchmarkRun, Plan

    chosen = {name: parameters.pop(name) for name in Plan.model_fields if name in parameters}
    given = given_settings(parameters)
    for name in ("backbones", "data", "methods"):
        chosen[name] = tuple(dict.fromkeys(chosen[name]))
    plan = Plan(
        **chosen,
        training={key: value for key, value in given.items() if key not in PER_RUN},
        config=config_file.read_text(encoding="utf-8") if config_file else "",
    )
    run = BenchmarkRun(
        plan,
        output,
        config_file=config_file,
        progress=make_progress(),
        **{key: value for key, value in given.items() if key in PER_RUN},
    )
    try:
        done = run.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Resume with the same command.") from None
    if done is not None:
        report, files = done
        _echo_scores(report)
        for path in files:
            click.echo(path)


def _echo_scores(report: BenchmarkReport) -> None:
    from flmm_core.report.table import percent

    rows: list[tuple[str, ...]] = [
        ("data", "protocol", "system", "phrases", "cIoU", "mIoU", "P@0.5")
    ]
    for row in report.rows:
        scores = [percent(row.scores[name].value, 2) for name in ("ciou", "miou", "precision@0.5")]
        rows.append((row.source, row.protocol, row.system, str(row.scores.phrases), *scores))
    echo_table(rows)
