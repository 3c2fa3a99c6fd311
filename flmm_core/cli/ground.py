"""`flmm ground`"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli.console import check_writable, echo_table
from flmm_core.cli.options import config_options, given_settings
from flmm_core.errors import UsageError

if TYPE_CHECKING:
    from flmm_core.pipeline.result import Result


@click.command("ground")
@click.argument("image", type=click.Path(path_type=Path))
@click.argument("phrases", metavar="PHRASE...", nargs=-1, required=True)
@click.option("--head", required=True, help="Run folder, head folder or hub id of a trained head.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("out"),
    show_default=True,
    help="Folder for overlay.png, mask-1.png, ... and result.json.",
)
@click.option(
    "--together", is_flag=True, help="Read all phrases in one caption, not each by itself."
)
@click.option(
    "--abstain",
    is_flag=True,
    help='Answer "not there" below the threshold that was chosen on validation data.',
)
@click.option(
    "--min-probability",
    type=click.FloatRange(0, 1),
    help='Answer "not there" where a mask is less likely right than this.',
)
@config_options("device")
@config_options("model", "refiner_weights", unset="where it lay in training")
def command(
    image: Path,
    phrases: tuple[str, ...],
    head: str,
    output: Path,
    together: bool,
    abstain: bool,
    min_probability: float | None,
    **parameters: Any,
) -> None:
    """Find phrases in an image.

    Writes one mask for each PHRASE at the size of IMAGE, all of them drawn over it, and
    result.json with COCO run-length masks, boxes, scores and probabilities.
    """
    for number, phrase in enumerate(phrases, start=1):
        if not phrase.strip():
            raise UsageError(f"Phrase {number} is empty.", repair="Give it at least one word.")
    check_writable(output)
    from flmm_core.data.images import read_image

    picture = read_image(image)
    from flmm_core import Grounder

    grounder = Grounder.from_pretrained(head, **given_settings(parameters))
    below = min_probability
    if abstain and below is None:
        from flmm_core.evaluation.confidence import chosen_threshold

        instead = "give --min-probability"
        below = chosen_threshold(grounder.confidence, head, instead=instead)
    result = grounder.ground(picture, phrases, together=together)
    if below is not None:
        result = result.abstain(below)
    files = write_result(result, output, picture=str(image), head=head)
    rows = [("mask", "phrase", "score", "probability", "pixels")]
    for name, record in zip(files, result.to_coco(), strict=True):
        found = f"{record['score']:.2f}" if record["area"] else "nothing found"
        found = found if record["there"] else "not there"
        known = record["probability"]
        likely = "-" if known is None else f"{known:.2f}"
        rows.append((str(output / name), record["phrase"], found, likely, str(record["area"])))
    echo_table(rows)


def write_result(result: Result, folder: Path, **facts: str) -> list[str]:
    """Write overlay.png, a mask a phrase (0 and 255) and result.json; returns the masks' names.

    All files are complete before the first of them gets its name, and masks that an earlier,
    longer result left here are removed.
    """
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    masks = [f"mask-{number}.png" for number in range(1, len(result) + 1)]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as partial:
        staging = Path(partial)
        for name, mask in zip(masks, result.masks, strict=True):
            Image.fromarray(mask.numpy()).convert("L").save(staging / name)
        result.overlay().save(staging / "overlay.png")
        found = [
            {"mask": name, **record} for name, record in zip(masks, result.to_coco(), strict=True)
        ]
        text = json.dumps({**facts, "found": found}, indent=2, ensure_ascii=False)
        (staging / "result.json").write_text(text + "\n", encoding="utf-8")
        if (folder / "result.json").exists():
            for stale in folder.glob("mask-*.png"):
                if stale.stem.removeprefix("mask-").isdecimal() and stale.name not in masks:
                    stale.unlink()
        for name in [*masks, "overlay.png", "result.json"]:
            (staging / name).replace(folder / name)
    return masks
