"""Reads a whole source, its images and masks included, and reports every fault."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flmm_core.data import rle
from flmm_core.data.findings import Findings, Skipped, Track
from flmm_core.data.formats.shared.writing import whole_folder
from flmm_core.data.images import read_image
from flmm_core.data.sample import AnnotatedImage
from flmm_core.data.sources import read_source
from flmm_core.data.tools.preview import draw_preview
from flmm_core.errors import DataError


@dataclass(frozen=True)
class Report:
    """What a check of a source found.

    Attributes:
        faults: Each names its file and the line or id in it.
        skipped: What is whole but cannot be scored.
        images: How many files of images were read whole.
        objects: How many objects they have that could be read.
        phrases: How many sentences name these.
        absent: How many of the objects have no pixel: their phrases name nothing.
    """

    faults: tuple[DataError, ...]
    skipped: tuple[Skipped, ...]
    pictures: int
    objects: int
    phrases: int
    absent: int


def check_source(
    text: str,
    *,
    previews: int = 0,
    output: Path | None = None,
    track: Track = iter,
) -> Report:
    """Read everything of a source: annotations, then every image and every mask.

    What belongs to a broken file (a JSON file that is cut off, a missing split) ends the reading
    of it and is reported as one fault.

    Args:
        text: `NAME[:PATH][@SPLIT]`.
        previews: Draw the first so many images that are whole.
        output: Folder for these drawings; it appears when all are drawn.
        track: Goes through the images and shows how far it is.

    Raises:
        UsageError: The text is of another form.
    """
    findings = Findings(keep_on=True)
    pictures: Sequence[AnnotatedImage] = ()
    with findings.part():
        _, pictures = read_source(text, findings)
    objects = phrases = absent = 0
    whole: dict[Path, bool] = {}
    drawn: list[AnnotatedImage] = []
    for picture in track(pictures):
        if picture.path not in whole:
            whole[picture.path] = False
            with findings.part():
                read_image(picture.path, image_hw=picture.image_hw)
                whole[picture.path] = True
        good = whole[picture.path]
        for thing in picture.objects:
            readable = False
            with findings.part():
                area = rle.area(thing.read_mask())
                objects, phrases = objects + 1, phrases + len(thing.sentences)
                absent += not area
                readable = True
            good = good and readable
        if good and len(drawn) < previews:
            drawn.append(picture)
    if output is not None and drawn:
        _draw(drawn, output)
    return Report(
        tuple(findings.faults),
        tuple(findings.skipped),
        sum(whole.values()),
        objects,
        phrases,
        absent,
    )


def _draw(pictures: Sequence[AnnotatedImage], output: Path) -> None:
    with whole_folder(output) as aside:
        digits = len(str(len(pictures)))
        for number, picture in enumerate(pictures, start=1):
            stem = Path(picture.file_name).stem
            draw_preview(picture).save(aside / f"{number:0{digits}}-{stem}.png")
