"""What every format leaves out: objects without a pixel that are not said absent, or without words.

An object without a pixel would otherwise become its opposite: a phrase for something that is not
in the image.
"""

from __future__ import annotations

from collections.abc import Sequence

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.sample import AnnotatedImage, GroundedObject, StoredMask
from flmm_core.segment import is_text

NO_PIXEL = "it covers no pixel"
NO_SENTENCE = "it has no sentence"
NO_TEXT = "its words are not Unicode text: they hold half of a surrogate pair"


def without_degenerate(
    images: Sequence[AnnotatedImage], findings: Findings
) -> tuple[AnnotatedImage, ...]:
    """The images with the objects that can be used; those without any are left out.

    Masks in files are not read; they raise an error of their own.
    """
    kept: list[AnnotatedImage] = []
    for image in images:
        usable: list[int] = []
        for index, thing in enumerate(image.objects):
            if problem := _problem(thing):
                findings.skip(f"object {thing.name or index} of {image.path}", problem)
            else:
                usable.append(index)
        if not all(is_text(piece.text) for piece in image.caption):
            findings.skip(f"caption {image.name} of {image.path}", NO_TEXT)
        elif len(usable) == len(image.objects):
            kept.append(image)
        elif usable:
            kept.append(image.only(usable))
    return tuple(kept)


def _problem(thing: GroundedObject) -> str:
    if not thing.sentences:
        return NO_SENTENCE
    if not all(map(is_text, (*thing.sentences, thing.category, thing.slice, *thing.tags))):
        return NO_TEXT
    in_file = isinstance(thing.mask, StoredMask)
    return "" if in_file or thing.absent or rle.area(thing.read_mask()) else NO_PIXEL
