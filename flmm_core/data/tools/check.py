"""Reads a source completely, with images and masks, and reports every fault."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flmm_core.data import rle
from flmm_core.data.findings import Findings, Skipped, Track
from flmm_core.data.images import read_image
from flmm_core.data.protocols import OBJECTS_PER_CAPTION, ImageSamples
from flmm_core.data.sample import AnnotatedImage, Sample
from flmm_core.data.sources import parse_source, read_source
from flmm_core.data.tools.preview import draw_preview
from flmm_core.errors import DataError, FlmmError
from flmm_core.files import whole_folder


@dataclass(frozen=True)
class CheckResult:
    """What is wrong with a source, and how many images and objects have no fault."""

    faults: tuple[DataError, ...]
    skipped: tuple[Skipped, ...]
    images: int
    objects: int
    phrases: int
    """Number of the objects' sentences."""
    absent: int
    """Number of objects with an empty mask."""


Prepare = Callable[[Sample], object]
"""Makes a sample ready for a model; FlmmError if the model cannot take it."""


def check_source(
    text: str,
    *,
    previews: int = 0,
    output: Path | None = None,
    prepare: Prepare | None = None,
    track: Track = iter,
) -> CheckResult:
    """Read a source completely: annotations, then every image and every mask.

    A broken file (truncated JSON, a missing split) is one fault. UsageError: see `parse_source`.

    Args:
        text: `NAME[:PATH][@SPLIT]`.
        previews: Number of images without a fault to draw into the folder `output`.
        prepare: Of a model; what it cannot take is left out, as training and evaluation do.
    """
    findings = Findings(keep_on=True)
    images: Sequence[AnnotatedImage] = ()
    source = parse_source(text)
    with findings.part():
        source, images = read_source(text, findings)
    objects = phrases = absent = 0
    whole: dict[Path, bool] = {}
    drawn: list[AnnotatedImage] = []
    for image in track(images):
        if image.path not in whole:
            whole[image.path] = False
            with findings.part():
                read_image(image.path, image_hw=image.image_hw, as_stored=image.as_stored)
                whole[image.path] = True
        readable = 0
        for thing in image.objects:
            with findings.part():
                absent += not rle.area(thing.read_mask())
                phrases += len(thing.sentences)
                readable += 1
        objects += readable
        if whole[image.path] and readable == len(image.objects):
            if prepare is not None:
                findings.skipped += _refused(image, source.label, prepare)
            if len(drawn) < previews:
                drawn.append(image)
    if output is not None and drawn:
        with whole_folder(output) as aside:
            for number, image in enumerate(drawn, start=1):
                name = f"{number:0{len(str(len(drawn)))}}-{Path(image.file_name).stem}.png"
                draw_preview(image).save(aside / name)
    faults, skipped = tuple(findings.faults), tuple(findings.skipped)
    return CheckResult(faults, skipped, sum(whole.values()), objects, phrases, absent)


def _refused(image: AnnotatedImage, label: str, prepare: Prepare) -> list[Skipped]:
    """The first sample of an image that a model cannot take: of training, then of evaluation."""
    for protocol, most in (("flmm-paper", OBJECTS_PER_CAPTION), ("standard", 0)):
        for sample in ImageSamples([image], protocol, label, most=most):
            try:
                prepare(sample)
            except FlmmError as error:
                return [Skipped.because(sample.name, error)]
    return []
