"""`flmm benchmark`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import click

from flmm_core.cli.console import check_writable, echo_table, make_progress
from flmm_core.cli.options import config_options, given_settings
from flmm_core.config import Protocol
from flmm_core.errors import UsageError
from flmm_core.evaluation.phrase_rows import Method

if TYPE_CHECKING:
    from flmm_core.report.table import Report

OF_A_CALL = ("device", "refiner_weights", "workers")
"""Settings that may differ when a benchmark goes on."""


@click.command("benchmark")
@click.option("--backbone", "backbones", multiple=True, help="Family to measure; repeatable.")
@click.option(
    "--head",
    "heads",
    multiple=True,
    help="Trained head of one of them: a run, a head's folder or a hub id; repeatable."
    "  [default: one is trained in DIR/heads]",
)
@click.option(
    "--data",
    multiple=True,
    default=["shapes@test"],
    show_default=True,
    help="Measure on NAME[:PATH][@SPLIT]; repeatable.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), required=True, metavar="DIR", help="The folder."
)
@click.option(
    "--protocol",
    type=click.Choice(get_args(Protocol)),
    default="standard",
    show_default=True,
    help="Each sentence alone, or all objects of an image in one caption.",
)
@click.option(
    "--method",
    "methods",
    multiple=True,
    type=click.Choice(get_args(Method)),
    default=["head"],
    show_default=True,
    help="What makes the masks; all but the head work without training. Repeatable.",
)
@click.option(
    "--method-data",
    multiple=True,
    help="Labelled data of which such methods see a few samples; repeatable."
    "  [default: what the head was trained on]",
)
@click.option(
    "--abstain",
    is_flag=True,
    help='Answer "not there" below the threshold that the head\'s training chose.',
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many samples of each.")
@click.option(
    "--max-skipped",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="Most samples of a source that may be left out because they cannot be scored.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Samples that are read together.",
)
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="YAML file of settings, as `flmm train` takes it, for heads that are trained.",
)
@config_options("steps", unset="as in `flmm train`")
@config_options(*OF_A_CALL)
def command(
    backbones: tuple[str, ...],
    heads: tuple[str, ...],
    data: tuple[str, ...],
    output: Path,
    protocol: Any,
    methods: tuple[Any, ...],
    method_data: tuple[str, ...],
    abstain: bool,
    limit: int | None,
    max_skipped: int,
    batch_size: int,
    config_file: Path | None,
    **parameters: Any,
) -> None:
    """Measure backbones on data sets, all on all, and write the report.

    Stopped at any point, the same line goes on where it was. Under `torchrun` or `accelerate
    launch` the processes share the work; the rows are the same. DIR then holds every phrase's row
    (cells/NAME/items.jsonl), what it was measured with (result.json) and report.html.
    """
    if not backbones and not heads:
        raise UsageError(
            "There is nothing to measure.",
            found="No --backbone and no --head was given.",
            repair="Name at least one backbone (`flmm backbones` lists them), or a trained head.",
        )
    check_writable(output)
    from flmm_core.benchmark import BenchmarkRun, Plan

    given = given_settings(parameters)
    plan = Plan(
        backbones=tuple(dict.fromkeys(backbones)),
        heads=heads,
        data=tuple(dict.fromkeys(data)),
        protocol=protocol,
        methods=tuple(dict.fromkeys(methods)),
        method_data=method_data,
        abstain=abstain,
        limit=limit,
        batch_size=batch_size,
        training={key: value for key, value in given.items() if key not in OF_A_CALL},
        config=config_file.read_text(encoding="utf-8") if config_file else "",
    )
    run = BenchmarkRun(
        plan,
        output,
        config_file=config_file,
        max_skipped=max_skipped,
        progress=make_progress(),
        **{key: value for key, value in given.items() if key in OF_A_CALL},
    )
    try:
        done = run.run()
    except KeyboardInterrupt:
        raise KeyboardInterrupt("Continue with the same command.") from None
    if done is not None:
        report, files = done
        _echo(report)
        for path in files:
            click.echo(path)


def _echo(report: Report) -> None:
    from flmm_core.report.table import percent

    rows: list[tuple[str, ...]] = [
        ("data", "protocol", "system", "phrases", "cIoU", "mIoU", "P@0.5")
    ]
    for row in report.rows:
        figures = [percent(row.scores[name].value, 2) for name in ("ciou", "miou", "precision@0.5")]
        rows.append((row.source, row.protocol, row.system, str(row.scores.phrases), *figures))
    echo_table(rows)
