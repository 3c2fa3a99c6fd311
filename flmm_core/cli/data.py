"""`flmm data`"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli.console import make_progress
from flmm_core.cli.options import config_options, given_settings
from flmm_core.config import MAX_SKIPPED, load_config
from flmm_core.data.formats import FORMATS, writable_formats
from flmm_core.errors import DataError, UsageError
from flmm_core.files import check_writable, whole_folder
from flmm_core.plugins import load_backbones, load_class

if TYPE_CHECKING:
    from flmm_core.data.findings import Skipped
    from flmm_core.data.tools.check import CheckResult, Prepare

MODEL = ("model", "options", "prompt")
"""The settings that decide what a model can take."""
SKIPPED_SHOWN = 10
WIDTH = max(len(known.form) for known in FORMATS.values())
SOURCES = "\n".join(f"  {known.form:{WIDTH}} {known.summary}" for known in FORMATS.values())


SHARE = click.FloatRange(min=0, max=1, max_open=True)
OPTIONS = """  ,images=DIR              where the images lie, if not in a usual folder
  ,exif=ignore             images were annotated as stored, not as their EXIF data turn them"""


@click.group(
    "data", epilog=f"\b\nSources of data:\n{SOURCES}\n\n\b\nOptions behind a source:\n{OPTIONS}"
)
def command() -> None:
    """Draw, check, convert and split data sets."""


@command.command("draw")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option(
    "--format",
    "form",
    type=click.Choice(writable_formats()),
    default="refcoco",
    help="Format of the data set; see `flmm data --help`.",
)
@click.option(
    "--pictures",
    type=click.IntRange(min=1),
    default=1000,
    help="Number of images.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Random seed.")
@click.option(
    "--kind",
    "kinds",
    multiple=True,
    default=["plain"],
    help="Kind of scene: plain, relation, size, occlusion, texture, small or flat; repeatable.",
)
@click.option("--split", default="train", help="Split that the images are written to.")
@click.option(
    "--sentences",
    type=click.IntRange(min=1),
    default=1,
    help="Maximum number of phrases per object.",
)
def draw(folder: Path, form: str, pictures: int, **parameters: Any) -> None:
    """Draw colored shapes with masks and phrases, and write them to DIR.

    The same seed gives the same images. Train on them with --data FORMAT:DIR@SPLIT. They include
    what the format is made for: pairs of objects, absent objects, narratives or ignored pixels.
    """
    _check_new(folder, "Give another DIR.")
    from flmm_core.data.drawn.writing import draw_images

    drawn = draw_images(pictures, extras=FORMATS[form].extras, **parameters)
    with whole_folder(folder) as aside:
        FORMATS[form].write(aside, _tracked("Drawing", drawn, pictures))
    click.echo(folder)


@command.command("check")
@click.argument("source")
@click.option(
    "--pictures",
    "previews",
    type=click.IntRange(min=1),
    help="Draw this many images with their masks and phrases; requires --output.",
)
@click.option("--output", type=click.Path(path_type=Path), help="New folder for the drawn images.")
@config_options("backbone", unset="only the files are checked")
@config_options(*MODEL)
def check(source: str, previews: int | None, output: Path | None, **parameters: Any) -> None:
    """Report every fault of a data set: file, line and field.

    SOURCE is NAME[:PATH][@SPLIT], see `flmm data --help`. Annotations, images and masks are read
    completely. What cannot be used is listed too, but is no fault; with --backbone also images and
    captions that the model cannot take, for which its weights are not read. The exit code is 3 if
    there is a fault.
    """
    given = given_settings(parameters)
    if (previews is None) != (output is None):
        raise UsageError(
            "--pictures and --output belong together.",
            repair="Give both to draw images, or none.",
        )
    if output is not None:
        _check_new(output, "Give another --output.")
    from flmm_core.data.tools.check import check_source

    track = partial(_tracked, "Checking")
    prepare = _prepare(given) if given else None
    result = check_source(
        source, previews=previews or 0, output=output, prepare=prepare, track=track
    )
    _show(source, result)
    if output is not None and output.is_dir():
        click.echo(output)
    if result.faults:
        raise click.exceptions.Exit(DataError.exit_code)


@command.command("convert")
@click.argument("source")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--link", is_flag=True, help="Create links to the images instead of copies.")
@config_options("max_skipped")
def convert(source: str, folder: Path, link: bool, max_skipped: str | None) -> None:
    """Convert any data set to JSON Lines, one JSON object per image.

    SOURCE is NAME[:PATH][@SPLIT], see `flmm data --help`; it is written to DIR/SPLIT, beside other
    splits. Train on it with --data jsonl:DIR@SPLIT. Other tools can read it as an imagefolder.
    """
    check_writable(folder, repair="Give another DIR.")
    from flmm_core.data.tools.convert import convert_source

    track = partial(_tracked, "Converting")
    target, skipped = convert_source(
        source, folder, link=link, max_skipped=max_skipped or MAX_SKIPPED, track=track
    )
    _show_skipped(skipped, err=True)
    click.echo(target)


@command.command("split")
@click.argument("source")
@click.argument("folder", metavar="DIR", type=click.Path(path_type=Path))
@click.option("--val", type=SHARE, default=0.1, help="Share of the images that is for validation.")
@click.option("--test", type=SHARE, default=0.1, help="Share of the images that is for testing.")
@click.option("--seed", type=click.IntRange(min=0), default=0, help="Random seed.")
@click.option("--link", is_flag=True, help="Create links to the images instead of copies.")
@config_options("max_skipped")
def split(
    source: str, folder: Path, val: float, test: float, seed: int, link: bool,
    max_skipped: str | None,
) -> None:  # fmt: skip
    """Split a data set by image into DIR/train, DIR/val and DIR/test, as JSON Lines.

    SOURCE is NAME[:PATH][@SPLIT], see `flmm data --help`. No image is in two parts, nor are equal
    files; categories are spread evenly. The same seed gives the same split. Train with --data
    jsonl:DIR@train --val-data jsonl:DIR@val --eval-data jsonl:DIR@test.
    """
    check_writable(folder, repair="Give another DIR.")
    from flmm_core.data.tools.split import split_source

    shares, track = {"val": val, "test": test}, partial(_tracked, "Splitting")
    counts, skipped = split_source(
        source,
        folder,
        shares,
        seed=seed,
        link=link,
        max_skipped=max_skipped or MAX_SKIPPED,
        track=track,
    )
    _show_skipped(skipped, err=True)
    for name, count in counts.items():
        click.echo(f"jsonl:{folder}@{name} ({count} {'image' if count == 1 else 'images'})")


def _prepare(given: dict[str, Any]) -> Prepare:
    """What makes samples ready for a model, whose weights are not read."""
    config, spec = load_config(None, given, load_backbones().get)
    from flmm_core.loader.dataset import ObservedFeatures
    from flmm_core.pipeline.observer import Observer

    backbone = load_class(spec).load(
        spec, config.model, device_map="meta", prompt=config.prompt, options=config.options
    )
    return ObservedFeatures(Observer(backbone)).prepare


def _tracked(name: str, items: Any, total: int | None = None) -> Iterator[Any]:
    with make_progress().stage(name, total=total or len(items)) as stage:
        for item in items:
            yield item
            stage.advance()


def _check_new(folder: Path, repair: str) -> None:
    check_writable(folder, repair=repair)
    if folder.is_dir() and any(folder.iterdir()):
        raise UsageError(
            f"The folder '{folder}' is not empty.", repair="Give a new one, or empty it first."
        )


def _show(source: str, result: CheckResult) -> None:
    for number, fault in enumerate(result.faults, start=1):
        lines = str(fault).splitlines()
        click.echo("\n   ".join([f"{number}. {lines[0]}", *lines[1:]]))
    _show_skipped(result.skipped, every=True)
    nothing = f" ({result.absent} of them absent)" if result.absent else ""
    left_out = f"; {len(result.skipped)} left out" if result.skipped else ""
    click.echo(
        f"{source}: {len(result.faults) or 'no'} fault{'s' * (len(result.faults) != 1)}; "
        f"{result.images} images, {result.objects} objects{nothing}, {result.phrases} phrases"
        f"{left_out}"
    )


def _show_skipped(skipped: Sequence[Skipped], *, err: bool = False, every: bool = False) -> None:
    """Some of what is left out, or `every` item that is a loss."""
    lost = [item for item in skipped if every and item.counts]
    others = [item for item in skipped if not (every and item.counts)]
    for item in lost + others[:SKIPPED_SHOWN]:
        click.echo(f"left out: {item.name}: {item.reason}", err=err)
    if len(others) > SKIPPED_SHOWN:
        click.echo(f"left out: {len(others) - SKIPPED_SHOWN} more", err=err)
