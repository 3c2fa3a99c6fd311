"""How the phrases of an image are put into captions: the field's two evaluation protocols.

Scores of different protocols cannot be compared, so every result names its protocol.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import get_args, overload

import numpy as np

from flmm_core.config import ProtocolName
from flmm_core.data.findings import Skipped
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Phrase, Sample
from flmm_core.errors import UsageError, did_you_mean
from flmm_core.segment import Segment

PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)


def check_protocol(name: str) -> ProtocolName:
    """The protocol of that name; UsageError for any other."""
    if name not in PROTOCOLS:
        raise UsageError(
            f"Unknown protocol '{name}'. {did_you_mean(name, PROTOCOLS)}".rstrip(),
            found=f"Protocols: {', '.join(PROTOCOLS)}.",
            repair="'standard' scores every sentence alone; 'flmm-paper' puts the first sentence "
            "of each object of an image into one caption.",
        )
    return name


class LazySamples(Sequence[Sample]):
    """A sequence that makes its samples on demand; picklable for DataLoader workers."""

    skipped: tuple[Skipped, ...] = ()
    """Items of the files that cannot be scored."""

    def _make(self, index: int) -> Sample:
        raise IndexError(index)

    def extent(self, index: int) -> tuple[int, int, int]:
        """Height and width of a sample's image in pixels, and the length of its caption.

        Reads no file, whereas making a sample may read masks.
        """
        sample = self[index]
        return *sample.image_hw, len(sample.caption)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[Sample, ...]: ...

    def __getitem__(self, index: int | slice) -> Sample | tuple[Sample, ...]:
        if isinstance(index, slice):
            return tuple(self._make(i) for i in range(*index.indices(len(self))))
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return self._make(place)


class ImageSamples(LazySamples):
    """The samples of annotated images under a protocol.

    "flmm-paper": one sample per image, whose caption is the first sentence of each object,
    separated by ".". "standard": one sample per sentence, followed by ".". An image with its own
    caption (a narrative) is one sample under either. `source` is a prefix of sample names, so that
    they are unique over several sources.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        protocol: str,
        source: str = "",
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.skipped = tuple(skipped)
        self.images = tuple(images)
        self.protocol = check_protocol(protocol)
        self.source = source
        places: list[tuple[int, int, int]] = []
        for number, image in enumerate(self.images):
            if image.caption:
                places.append((number, 0, 0))
                continue
            for position, thing in enumerate(image.objects):
                places += [(number, position, i) for i in range(len(thing.sentences))]
        self._sentences = np.array(places, dtype=np.int32).reshape(-1, 3)

    @property
    def folder(self) -> Path:
        """The deepest folder that contains all images, absolute."""
        parents = {image.path.absolute().parent for image in self.images}
        return Path(os.path.commonpath(parents)) if parents else Path.cwd()

    def __len__(self) -> int:
        return len(self.images) if self.protocol == "flmm-paper" else len(self._sentences)

    def _make(self, index: int) -> Sample:
        image, name, segments, things = self._captioned(index)
        phrases = []
        for number, thing in enumerate(things):
            text = "".join(piece.text for piece in segments if piece.phrase == number).strip()
            phrases.append(
                Phrase(
                    text,
                    thing.read_mask(),
                    thing.category,
                    thing.slice,
                    thing.tags,
                    thing.ignore,
                    _distractors(image, thing) if thing.category else None,
                )
            )
        name = f"{self.source}/{name}" if self.source else name
        return Sample(name, image.path, image.image_hw, tuple(segments), tuple(phrases))

    def extent(self, index: int) -> tuple[int, int, int]:
        image, _, segments, _ = self._captioned(index)
        return *image.image_hw, sum(len(piece.text) for piece in segments)

    def _captioned(
        self, index: int
    ) -> tuple[AnnotatedImage, str, Sequence[Segment], Sequence[GroundedObject]]:
        """A sample's image, name and caption, and the objects that the caption refers to."""
        number, position, sentence = index, 0, 0
        if self.protocol == "standard":
            number, position, sentence = self._sentences[index].tolist()
        image = self.images[number]
        if image.caption:
            return image, f"{image.file_name}#{image.name}", image.caption, image.objects
        things, name = image.objects, image.file_name
        if self.protocol == "standard":
            things = things[position : position + 1]
            name = f"{name}#{things[0].name or position}/{sentence}"
        segments: list[Segment] = []
        for phrase, thing in enumerate(things):
            segments += [Segment(thing.sentences[sentence], phrase), Segment(".")]
        return image, name, segments, things


def _distractors(image: AnnotatedImage, thing: GroundedObject) -> int:
    """The number of other distinct masks of its category."""
    masks = [thing.mask]
    for other in image.objects:
        if other.category == thing.category and other.mask not in masks:
            masks.append(other.mask)
    return len(masks) - 1
