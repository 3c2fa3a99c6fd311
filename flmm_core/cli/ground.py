"""`flmm ground`"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.annotate.outputs import KINDS
from flmm_core.cli.console import (
    echo_json,
    echo_table,
    for_each_line,
    importing,
    json_option,
    make_progress,
)
from flmm_core.cli.options import AS_TRAINED, PLACEMENT, config_options, given_behind
from flmm_core.data.findings import Skipped
from flmm_core.errors import DataError, Problems, RunError, UsageError
from flmm_core.files import check_writable, hold
from flmm_core.pipeline.result_files import USUAL

if TYPE_CHECKING:
    from PIL import Image

    from flmm_core.annotate.folder import Done
    from flmm_core.pipeline.grounder import Grounder

HIDDEN = ("picture", "head", "key")
"""Of result.json, what --json says otherwise or not at all."""
SHOWN = 20
"""Images that cannot be used are listed in full in left-out.json."""


@click.command("ground")
@click.argument("arguments", metavar="IMAGE... [PHRASE]...", nargs=-1, required=True)
@click.option(
    "-p",
    "--phrase",
    "phrases",
    multiple=True,
    help="What to segment; repeatable. With it, all arguments are images.",
)
@click.option(
    "--head",
    required=True,
    help="Trained head: a run folder, a head folder or a hub id (NAME@REVISION).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out"),
    help="Folder for the results of one image; for a folder of results per image if there are "
    "several.",
)
@click.option(
    "--save",
    type=click.Choice(list(KINDS)),
    multiple=True,
    default=USUAL,
    help="What to write besides result.json; repeatable: "
    + "; ".join(f"{name}: {what}" for name, what in KINDS.items())
    + ".",
)
@click.option(
    "--together", is_flag=True, help="Read all phrases in one caption instead of one by one."
)
@click.option(
    "--keep-absent",
    is_flag=True,
    help='Show the masks of phrases, too, that the head says are "not there".',
)
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    help='Answer "not there" below this probability.  [default: chosen in training]',
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    help="Most phrases at a time, of one image or of several.",
)
@click.option("--overwrite", is_flag=True, help="Segment again what an earlier run has done.")
@config_options(*PLACEMENT, "force", "strict", "check")
@config_options(*AS_TRAINED, unset="as in training")
@json_option
def command(
    arguments: tuple[str, ...],
    phrases: tuple[str, ...],
    head: str,
    output: Path,
    save: tuple[str, ...],
    together: bool,
    keep_absent: bool,
    min_probability: float | None,
    batch_size: int,
    overwrite: bool,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Segment phrases in images.

    \b
    flmm ground photo.jpg "a red ring" "the star" --head RUN
    flmm ground a.jpg b.jpg photos/ "more/**/*.png" -p "a red ring" --head RUN
    flmm ground requests.jsonl --head RUN
    flmm ground photo.jpg --head RUN

    IMAGE is a file, a folder (with all folders in it), a pattern, a JSONL file with
    {"image": "a.jpg", "phrases": ["a red ring"]} a line, or "-", which reads such lines or paths
    from stdin.

    Writes one mask per phrase at the size of the image, an overlay with all masks, and result.json
    with COCO run-length masks, boxes, scores and probabilities. A phrase that names nothing in the
    image is "not there" and has an empty mask, if the head was trained to tell.

    Without a PHRASE it asks for one after the other in one image file, until Ctrl-C or the end of
    the input; the image is read once, and the results are of all phrases so far. With --json each
    phrase is one JSON object.

    Of several images, those that cannot be used are listed at the end, and the exit code is 1.
    Images that an earlier run has done in the same way are kept.
    """
    if keep_absent and min_probability is not None:
        raise UsageError(
            "--keep-absent and --min-probability contradict each other.",
            found=f"--min-probability {min_probability:g} withholds masks, --keep-absent does not.",
            repair="Give one of them.",
        )
    from flmm_core.annotate.requests import STDIN, find_requests, is_one_image, split_arguments

    kinds = tuple(kind for kind in KINDS if kind in save)
    given = given_behind(parameters)
    how: dict[str, Any] = {
        "together": together,
        "keep_absent": keep_absent,
        "min_probability": min_probability,
        "kinds": kinds,
    }
    if not phrases and is_one_image(arguments):
        _ask_for_phrases(Path(arguments[0]), head, output, how, given, as_json)
        return
    sources, said = split_arguments(arguments, phrases)
    check_writable(output)
    requests = find_requests(sources, said, _stdin() if STDIN in sources else ())
    flat = len(sources) == 1 and Path(sources[0]) == requests[0].path
    if flat:
        image = _read_only_image(requests[0].path, head, given)
    with importing():
        import flmm_core
        from flmm_core.annotate.folder import Manner, ground_folder
        from flmm_core.pipeline.head_folder import digest_of_head

    def load() -> Grounder:
        with importing():
            return flmm_core.Grounder.from_pretrained(head, **given)

    ground = partial(
        ground_folder,
        load,
        requests,
        output,
        head=head,
        manner=Manner(**how),
        batch_size=batch_size,
    )
    if flat:
        done = ground(flat=True, read=lambda path: image)
    else:
        made_with = {"head": digest_of_head(head), **{k: str(v) for k, v in given.items()}}
        with hold(output, "writing to"):
            done = ground(made_with=made_with, overwrite=overwrite, progress=make_progress())
    lost = [each for each in done if each.error is not None]
    if flat and lost and lost[0].error:
        raise lost[0].error
    if as_json:
        echo_json({"head": head, "images": [_record(each) for each in done]})
    elif flat:
        echo_table([("mask", "phrase", "score", "probability", "pixels"), *_rows(done[0])])
    else:
        for each in done:
            if each.content is not None:
                click.echo(f"{each.folder}: {', '.join(_summary(each))}")
    if lost:
        told = [Skipped.because(str(e.request.path), str(e.error)) for e in lost[:SHOWN]]
        more = [f"and {len(lost) - SHOWN} more"] if len(lost) > SHOWN else []
        raise RunError(
            f"{len(lost)} of {len(done)} images cannot be used.",
            found="\n".join([*(f"{item.name}: {item.reason}" for item in told), *more]),
            repair=f"The others are in {output}, the list in {output / 'left-out.json'}.",
        )


def _ask_for_phrases(
    path: Path, head: str, output: Path, how: dict[str, Any], given: dict[str, Any], as_json: bool
) -> None:
    """Phrase after phrase of one image; `how` is what `Manner` takes."""
    from flmm_core.annotate.requests import NEW_FORM

    if how["together"]:
        raise UsageError(
            "--together needs all phrases at once.",
            found="None was given, so they are asked for one by one.",
            repair=f"Give them: {NEW_FORM}",
        )
    check_writable(output)
    image = _read_only_image(path, head, given)
    with importing():
        import flmm_core
        from flmm_core.annotate.folder import Manner
        from flmm_core.annotate.phrase_by_phrase import PhraseByPhrase

        grounder = flmm_core.Grounder.from_pretrained(head, **given)
        asking = PhraseByPhrase(grounder, path, image, output, head=head, manner=Manner(**how))

    def answer(phrase: str) -> None:
        done = asking.ground(phrase)
        if as_json:
            click.echo(json.dumps((done.content or {})["found"][-1], ensure_ascii=False))
        else:
            echo_table([[*_rows(done)][-1]])

    if not for_each_line(answer) and not sys.stdin.isatty():
        raise UsageError("There is no phrase to segment.", repair=f"Give some: {NEW_FORM}")


def _stdin() -> Iterator[bytes]:
    yield from sys.stdin.buffer


def _read_only_image(path: Path, head: str, given: dict[str, Any]) -> Image.Image:
    """The only image; `DataError` if it cannot be read, with what is wrong with the head, too."""
    from flmm_core.data.images import read_image

    try:
        return read_image(path)
    except DataError as error:
        from flmm_core.pipeline.check_head import check_head

        problems = Problems()
        problems.add(error)
        check_head(head, problems, **given)
        problems.check()
        raise


def _record(done: Done) -> dict[str, Any]:
    """An image in the output of --json."""
    if done.content is None:
        return {"image": str(done.request.path), "error": str(done.error)}
    content = {key: value for key, value in done.content.items() if key not in HIDDEN}
    return {"image": str(done.request.path), "folder": str(done.folder), **content}


def _rows(done: Done) -> Iterator[tuple[str, ...]]:
    for record in (done.content or {})["found"]:
        known = record["probability"]
        likely = "-" if known is None else f"{known:.2f}"
        name = str(done.folder / record["mask"]) if "mask" in record else "-"
        yield name, record["phrase"], _found(record), likely, str(record["area"])


def _summary(done: Done) -> Iterator[str]:
    for record in (done.content or {})["found"]:
        yield f"{record['phrase']} {_found(record)}"


def _found(record: dict[str, Any]) -> str:
    if not record["there"]:
        return "not there"
    return f"{record['score']:.2f}" if record["area"] else "nothing found"
