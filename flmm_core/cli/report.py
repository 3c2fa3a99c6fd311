"""`flmm report`"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from flmm_core.cli.console import echo_json, echo_table
from flmm_core.files import check_writable

FOLDER = click.Path(path_type=Path)
FORMS = ("html", "markdown", "csv", "latex", "json")


@click.group("report")
def command() -> None:
    """Show a benchmark or a run as a page, or compare benchmarks."""


@command.command("build")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--output",
    type=FOLDER,
    help="The HTML file; the tables are written beside it.  [default: DIR/report.html]",
)
@click.option(
    "--format",
    "forms",
    multiple=True,
    type=click.Choice(FORMS),
    default=FORMS,
    show_default=False,
    help="Output format, repeatable.  [default: all]",
)
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    default=4,
    help="Best and worst phrases on the page per measurement.",
)
def build(folder: Path, output: Path | None, forms: tuple[str, ...], examples: int) -> None:
    """Write the results of `flmm benchmark` in DIR as one HTML file and as tables.

    The page is self-contained. The tables have the same name, with the suffixes .md, .csv, .tex
    and .json.
    """
    if output is not None:
        check_writable(output.parent)
    from flmm_core.report.page import build_report

    for path in build_report(folder, output, forms=forms, examples=examples)[1]:
        click.echo(path)


@command.command("training")
@click.argument("run", type=FOLDER)
def training(run: Path) -> None:
    """Write training.html of the run folder RUN: curves, scores, images, settings.

    `flmm train` does it at its end, or when it is stopped; here it can be done in between.
    """
    from flmm_core.report.training import write_training_page

    click.echo(write_training_page(run))


@command.command("compare")
@click.argument("first", metavar="A", type=FOLDER)
@click.argument("second", metavar="B", type=FOLDER)
@click.option(
    "--common", is_flag=True, help="Compare the phrases that both have, instead of failing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(first: Path, second: Path, common: bool, as_json: bool) -> None:
    """Compare B with A, phrase by phrase: two benchmarks, or two folders in their `cells`.

    Differences are B minus A, in percentage points, with a 95 % bootstrap interval over images
    and the p-value of a paired permutation test over images.
    """
    from flmm_core.evaluation.scores import titles
    from flmm_core.report.compare import compare_folders, some_of
    from flmm_core.report.table import p_value, percent, signed

    found = compare_folders(first, second, common=common)
    if as_json:
        echo_json(asdict(found))
        return
    for number, pair in enumerate(found.pairs):
        if number:
            click.echo()
        click.echo(f"A {pair.first}\nB {pair.second}")
        images = f"{pair.phrases} phrases of {pair.pictures} images"
        click.echo(f"{pair.source}, protocol {pair.protocol}: {images}")
        rows = [("", "A", "B", "B - A", "95 %", "p")]
        for name, score in pair.scores.items():
            figures = percent(score.first, 2), percent(score.second, 2), signed(score.difference, 2)
            ends = "-"
            if score.low is not None and score.high is not None:
                ends = f"{signed(score.low)} to {signed(score.high)}"
            rows.append((titles()[name], *figures, ends, p_value(score.p)))
        echo_table(rows)
        for here, items in (("A", pair.only_first), ("B", pair.only_second)):
            if items:
                click.echo(f"Only {here} has {len(items)}: {some_of(items)}")
    for folder, names in (("A", found.only_first), ("B", found.only_second)):
        if names:
            click.echo(f"\nOnly in {folder}: {', '.join(names)}")
