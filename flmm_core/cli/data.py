"""`flmm data`"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from flmm_core.cli.console import check_writable, make_progress
from flmm_core.errors import UsageError

if TYPE_CHECKING:
    from flmm_core.data.writing import NewPicture
    from flmm_core.progress import Stage


@click.group("data")
def command() -> None:
    """Draw data sets of coloured shapes."""


@command.command("draw")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["refcoco", "jsonl"]),
    default="refcoco",
    show_default=True,
    help="The field's own format, or one JSON object a picture.",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="How many pictures.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Seed.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    default=["plain"],
    show_default=True,
    help="Kind of scene, repeatable: plain, relation, size, occlusion, texture, small, flat.",
)
@click.option(
    "--split", default="train", show_default=True, help="What the objects are said to belong to."
)
@click.option(
    "--sentences",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Most phrases of one object.",
)
def draw(
    folder: Path,
    form: str,
    pictures: int,
    seed: int,
    kinds: tuple[str, ...],
    split: str,
    sentences: int,
) -> None:
    """Draw coloured shapes with masks and phrases, and write them to DIR.

    The same seed gives the same pictures. Train on them with --data FORMAT:DIR@SPLIT.
    """
    check_writable(folder, repair="Give another DIR.")
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"The folder '{folder}' is not empty.", repair="Give a new one, or empty it first."
        )
    from flmm_core.data.draw import WRITERS, draw_pictures

    drawn = draw_pictures(pictures, seed, kinds=kinds, split=split, sentences=sentences)
    with make_progress().stage("Drawing", total=pictures) as stage:
        WRITERS[form](folder, _counted(drawn, stage))
    click.echo(folder)


def _counted(drawn: Iterator[NewPicture], stage: Stage) -> Iterator[NewPicture]:
    for picture in drawn:
        yield picture
        stage.advance()
