"""`flmm data`"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli.console import check_writable, make_progress
from flmm_core.errors import DataError, UsageError

if TYPE_CHECKING:
    from flmm_core.data.findings import Skipped, Track
    from flmm_core.data.formats.shared.writing import NewImage
    from flmm_core.data.tools.check import Report
    from flmm_core.progress import Stage

SKIPPED_SHOWN = 10


@click.group("data")
def command() -> None:
    """Draw, check and convert data sets."""


@command.command("draw")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(["refcoco", "grefcoco", "png", "reasonseg", "jsonl", "coco", "labelme"]),
    default="refcoco",
    show_default=True,
    help="One of the field's own formats, one JSON object an image, or an annotation tool's.",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="How many images.",
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

    The same seed gives the same images. Train on them with --data FORMAT:DIR@SPLIT. What a format
    is made for is drawn with it: grefcoco has pairs and things that are not there, png narratives,
    pairs and the background, reasonseg pixels to ignore.
    """
    _check_new(folder, "Give another DIR.")
    from flmm_core.data.drawn.writing import FORMATS, draw_images
    from flmm_core.data.formats.shared.writing import whole_folder

    drawn = draw_images(
        pictures,
        seed,
        kinds=kinds,
        split=split,
        sentences=sentences,
        extras=FORMATS[form].extras,
    )
    with make_progress().stage("Drawing", total=pictures) as stage, whole_folder(folder) as aside:
        FORMATS[form].write(aside, _counted(drawn, stage))
    click.echo(folder)


@command.command("check")
@click.argument("source")
@click.option(
    "--pictures",
    "previews",
    type=click.IntRange(min=1),
    help="Draw the first so many images with their masks and phrases; needs --output.",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    help="Folder for the drawn images; a new one.",
)
def check(source: str, previews: int | None, output: Path | None) -> None:
    """Report every fault of a data set: file, line and field.

    SOURCE is NAME[:PATH][@SPLIT]. Annotations, images and masks are read whole. Exits with 3 if
    there is a fault. What is whole but cannot be scored is listed too, and is no fault.
    """
    if (previews is None) != (output is None):
        raise UsageError(
            "--pictures and --output belong together.",
            repair="Give both to draw images, or none.",
        )
    if output is not None:
        _check_new(output, "Give another --output.")
    from flmm_core.data.tools.check import check_source

    report = check_source(source, previews=previews or 0, output=output, track=_tracked("Checking"))
    _show(source, report)
    if output is not None and output.is_dir():
        click.echo(output)
    if report.faults:
        raise click.exceptions.Exit(DataError.exit_code)


@command.command("convert")
@click.argument("source")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--link", is_flag=True, help="Link to the images instead of copying them.")
def convert(source: str, folder: Path, link: bool) -> None:
    """Write any data set as one JSON object an image.

    SOURCE is NAME[:PATH][@SPLIT]; it goes to DIR/SPLIT, beside other splits. Train on it with
    --data jsonl:DIR@SPLIT. Other tools can read it as an imagefolder.
    """
    check_writable(folder, repair="Give another DIR.")
    from flmm_core.data.tools.convert import convert_source

    target, skipped = convert_source(source, folder, link=link, track=_tracked("Converting"))
    _show_skipped(skipped, err=True)
    click.echo(target)


def _tracked(name: str) -> Track:
    def track(items: Collection[Any]) -> Iterator[Any]:
        with make_progress().stage(name, total=len(items)) as stage:
            for item in items:
                yield item
                stage.advance()

    return track


def _check_new(folder: Path, repair: str) -> None:
    """See that a folder can be written and holds nothing yet; UsageError otherwise."""
    check_writable(folder, repair=repair)
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"The folder '{folder}' is not empty.", repair="Give a new one, or empty it first."
        )


def _show(source: str, report: Report) -> None:
    for number, fault in enumerate(report.faults, start=1):
        lines = str(fault).splitlines()
        click.echo("\n   ".join([f"{number}. {lines[0]}", *lines[1:]]))
    _show_skipped(report.skipped)
    nothing = f" ({report.absent} name nothing in their image)" if report.absent else ""
    click.echo(
        f"{source}: {len(report.faults) or 'no'} fault{'s' * (len(report.faults) != 1)}; "
        f"{report.pictures} images, {report.objects} objects{nothing}, {report.phrases} phrases"
    )


def _show_skipped(skipped: tuple[Skipped, ...], err: bool = False) -> None:
    for item in skipped[:SKIPPED_SHOWN]:
        click.echo(f"left out: {item.name}: {item.reason}", err=err)
    if len(skipped) > SKIPPED_SHOWN:
        click.echo(f"left out: {len(skipped) - SKIPPED_SHOWN} more", err=err)


def _counted(drawn: Iterator[NewImage], stage: Stage) -> Iterator[NewImage]:
    for picture in drawn:
        yield picture
        stage.advance()
