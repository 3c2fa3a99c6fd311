"""`flmm report`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from flmm_core.cli.console import check_writable, echo_json, echo_table

if TYPE_CHECKING:
    from flmm_core.report.compare import Comparison, FolderComparison

FOLDER = click.Path(path_type=Path)
NAMED = 5
"""Missing phrases that are listed; --json has all."""


@click.group("report")
def command() -> None:
    """Show a benchmark as a page and tables, or compare two."""


@command.command("build")
@click.argument("folder", metavar="DIR", type=FOLDER)
@click.option(
    "--output",
    type=FOLDER,
    help="The HTML file; the tables lie beside it.  [default: DIR/report.html]",
)
@click.option(
    "--format",
    "forms",
    multiple=True,
    type=click.Choice(["html", "markdown", "csv", "latex", "json"]),
    default=["html", "markdown", "csv", "latex", "json"],
    help="What is written, repeatable.  [default: all]",
)
@click.option(
    "--examples",
    type=click.IntRange(min=0),
    default=4,
    show_default=True,
    help="Best and worst phrases that the page shows of each cell.",
)
def build(folder: Path, output: Path | None, forms: tuple[str, ...], examples: int) -> None:
    """Write what `flmm benchmark` measured in DIR as one HTML file and as tables.

    The page holds its images and links to nothing. The tables have its name and the endings
    .md, .csv, .tex and .json.
    """
    if output is not None:
        check_writable(output.parent)
    from flmm_core.report.build import build_report

    for path in build_report(folder, output, forms=forms, examples=examples)[1]:
        click.echo(path)


@command.command("compare")
@click.argument("first", metavar="A", type=FOLDER)
@click.argument("second", metavar="B", type=FOLDER)
@click.option(
    "--common", is_flag=True, help="Compare the phrases that both have, instead of refusing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def compare(first: Path, second: Path, common: bool, as_json: bool) -> None:
    """Compare B with A, phrase by phrase: two benchmarks, or two folders in their `cells`.

    Differences are B minus A, in points of 100, with a 95 % bootstrap interval over images; p
    is that of a paired test which exchanges A and B image by image.
    """
    from flmm_core.report.compare import compare_folders

    found = compare_folders(first, second, common=common)
    if as_json:
        echo_json(found.to_dict())
        return
    _echo_comparison(found)


def _echo_comparison(found: FolderComparison) -> None:
    for number, pair in enumerate(found.pairs):
        if number:
            click.echo()
        _echo_pair(pair)
    for folder, cells in (("A", found.only_first), ("B", found.only_second)):
        if cells:
            click.echo(f"\nOnly in {folder}: {', '.join(cells)}")


def _echo_pair(pair: Comparison) -> None:
    from flmm_core.report.table import p_value, percent, signed

    click.echo(f"A {pair.first}\nB {pair.second}")
    click.echo(
        f"{pair.source}, protocol {pair.protocol}: {pair.phrases} phrases of {pair.pictures} images"
    )
    rows = [("", "A", "B", "B - A", "95 %", "p")]
    for title, name in (("cIoU", "ciou"), ("mIoU", "miou")):
        score = pair.scores[name]
        ends = "-"
        if score.low is not None and score.high is not None:
            ends = f"{signed(score.low)} to {signed(score.high)}"
        rows.append(
            (
                title,
                percent(score.first, 2),
                percent(score.second, 2),
                signed(score.difference, 2),
                ends,
                p_value(score.p),
            )
        )
    echo_table(rows)
    for here, items in (("A", pair.only_first), ("B", pair.only_second)):
        if items:
            more = ", ..." if len(items) > NAMED else ""
            click.echo(f"Only {here} has {len(items)}: {', '.join(items[:NAMED])}{more}")
