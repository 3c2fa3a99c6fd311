"""`flmm ground`"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli.console import echo_table
from flmm_core.cli.options import AS_TRAINED, PLACEMENT, config_options, given_behind
from flmm_core.errors import DataError, Problems, UsageError
from flmm_core.files import check_writable, whole_folder, write_json

if TYPE_CHECKING:
    from flmm_core.pipeline.result import Result


@click.command("ground")
@click.argument("path", metavar="IMAGE", type=click.Path(path_type=Path))
@click.argument("phrases", metavar="PHRASE...", nargs=-1, required=True)
@click.option(
    "--head",
    required=True,
    help="Trained head: a run folder, a head folder or a hub id (NAME@REVISION).",
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out"),
    help="Folder for overlay.png, mask-1.png, ... and result.json.",
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
@config_options(*PLACEMENT, "force", "strict", "check")
@config_options(*AS_TRAINED, unset="as in training")
def command(
    path: Path,
    phrases: tuple[str, ...],
    head: str,
    output: Path,
    together: bool,
    keep_absent: bool,
    min_probability: float | None,
    **parameters: Any,
) -> None:
    """Segment phrases in an image.

    Writes one mask per PHRASE at the size of IMAGE, an overlay with all masks, and result.json
    with COCO run-length masks, boxes, scores and probabilities. A phrase that names nothing in the
    image is "not there" and has an empty mask, if the head was trained to tell.
    """
    for number, phrase in enumerate(phrases, start=1):
        if not phrase.strip():
            raise UsageError(f"Phrase {number} is empty.", repair="Give it at least one word.")
    if keep_absent and min_probability is not None:
        raise UsageError(
            "--keep-absent and --min-probability contradict each other.",
            found=f"--min-probability {min_probability:g} withholds masks, --keep-absent does not.",
            repair="Give one of them.",
        )
    check_writable(output)
    from flmm_core.data.images import read_image

    given = given_behind(parameters)
    try:
        image = read_image(path)
    except DataError as error:
        from flmm_core.pipeline.check_head import check_head

        problems = Problems()
        problems.add(error)
        check_head(head, problems, **given)
        problems.check()
        raise
    from flmm_core import Grounder

    grounder = Grounder.from_pretrained(head, **given)
    keep = keep_absent or min_probability is not None
    result = grounder.ground(image, phrases, together=together, keep_absent=keep)
    if min_probability is not None:
        result = result.abstain(min_probability)
    files = write_result(result, output, picture=str(path), head=head)
    rows = [("mask", "phrase", "score", "probability", "pixels")]
    for name, record in zip(files, result.to_coco(), strict=True):
        found = f"{record['score']:.2f}" if record["area"] else "nothing found"
        found = found if record["there"] else "not there"
        known = record["probability"]
        likely = "-" if known is None else f"{known:.2f}"
        rows.append((str(output / name), record["phrase"], found, likely, str(record["area"])))
    echo_table(rows)


def write_result(result: Result, folder: Path, **facts: str) -> list[str]:
    """Write overlay.png, one mask (0 and 255) per phrase and result.json; returns the masks' names.

    Masks that an earlier result with more phrases left in the folder are removed.
    """
    import numpy as np
    from PIL import Image

    earlier = (folder / "result.json").exists()
    names = [f"mask-{number}.png" for number in range(1, len(result) + 1)]
    with whole_folder(folder) as aside:
        for number, name in enumerate(names):
            Image.fromarray(result.mask(number).numpy() * np.uint8(255)).save(aside / name)
        result.overlay().save(aside / "overlay.png")
        records = zip(names, result.to_coco(), strict=True)
        found = [{"mask": name, **record} for name, record in records]
        write_json(aside / "result.json", {**facts, "found": found})
    if earlier:
        for path in folder.glob("mask-*.png"):
            if path.name not in names and path.stem.removeprefix("mask-").isdecimal():
                path.unlink()
    return names
