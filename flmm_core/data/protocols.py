"""How the phrases of an image are put into captions: the field's two evaluation protocols.

Scores of different protocols cannot be compared, so every result names its protocol.
"""

from __future__ import annotations

import os
from collections.abc import Hashable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import get_args, overload

import numpy as np

from flmm_core.config import ProtocolName
from flmm_core.data.findings import Skipped
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Phrase, Sample
from flmm_core.errors import UsageError, did_you_mean
from flmm_core.files import printable
from flmm_core.segment import Segment, caption_text, statements

PROTOCOLS: tuple[ProtocolName, ...] = get_args(ProtocolName)

OBJECTS_PER_CAPTION = 32
"""At most so many objects share a training caption: more may not fit into a model's context."""


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
    """Items of the files that are left out."""
    title: str = "the samples"
    """Names their source in messages."""

    @property
    def sources(self) -> tuple[Sequence[Sample], ...]:
        """The samples of each source, in order."""
        return (self,)

    @property
    def objects(self) -> int:
        """Number of annotated objects that they come from."""
        return len(self)

    def name(self, index: int) -> str:
        """The name of a sample; reads no file."""
        return self[index].name

    def _make(self, index: int) -> Sample:
        raise IndexError(index)

    def extent(self, index: int) -> tuple[int, int, int]:
        """Height and width of a sample's image in pixels, and the length of its caption.

        Reads no file, whereas making a sample may read masks.
        """
        sample = self[index]
        return *sample.image_hw, len(sample.caption)

    def image(self, index: int) -> Hashable:
        """What a sample has in common with those of the same image; reads no file."""
        return index

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

    "flmm-paper": one sample per image, whose caption is the first sentence of each object.
    "standard": one sample per sentence. Each sentence is followed by ".". An image with its own
    caption (a narrative) is one sample under either.

    Args:
        source: A prefix of sample names, so that they are unique over several sources.
        most: Put at most so many objects into one caption of "flmm-paper"; 0 means all of an image.
    """

    def __init__(
        self,
        images: Sequence[AnnotatedImage],
        protocol: str,
        source: str = "",
        skipped: Sequence[Skipped] = (),
        *,
        title: str = "",
        most: int = 0,
    ) -> None:
        self.skipped = tuple(skipped)
        self.title = title or source or self.title
        self.images = tuple(images)
        self.protocol = check_protocol(protocol)
        self.source = source
        # Per sample: its image, its first object and the one after its last, the sentence.
        places: list[tuple[int, int, int, int]] = []
        for number, image in enumerate(self.images):
            count = len(image.objects)
            if image.caption:
                places.append((number, 0, count, 0))
            elif self.protocol == "flmm-paper":
                captions = max(1, -(-count // most)) if most else 1
                bounds = [count * part // captions for part in range(captions + 1)]
                places += [(number, first, end, 0) for first, end in pairwise(bounds)]
            else:
                for place, thing in enumerate(image.objects):
                    places += [(number, place, place + 1, i) for i in range(len(thing.sentences))]
        self._places = np.array(places, dtype=np.int32).reshape(-1, 4)

    @property
    def folder(self) -> Path:
        """The deepest folder that contains all images, absolute."""
        parents = {image.path.absolute().parent for image in self.images}
        return Path(os.path.commonpath(parents)) if parents else Path.cwd()

    def __len__(self) -> int:
        return len(self._places)

    @property
    def objects(self) -> int:
        return sum(len(image.objects) for image in self.images)

    def name(self, index: int) -> str:
        _, name, _, _ = self._captioned(index)
        return printable(f"{self.source}/{name}" if self.source else name)

    def _make(self, index: int) -> Sample:
        image, _, segments, things = self._captioned(index)
        phrases = []
        for number, thing in enumerate(things):
            text = caption_text(piece for piece in segments if piece.phrase == number).strip()
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
        return Sample(
            self.name(index),
            image.path,
            image.image_hw,
            tuple(segments),
            tuple(phrases),
            as_stored=image.as_stored,
            narrated=bool(image.caption),
        )

    def extent(self, index: int) -> tuple[int, int, int]:
        image, _, segments, _ = self._captioned(index)
        return *image.image_hw, len(caption_text(segments))

    def image(self, index: int) -> Hashable:
        return int(self._places[index, 0])

    def _captioned(
        self, index: int
    ) -> tuple[AnnotatedImage, str, Sequence[Segment], Sequence[GroundedObject]]:
        """A sample's image, name and caption, and the objects that the caption refers to."""
        number, first, end, sentence = self._places[index].tolist()
        image = self.images[number]
        if image.caption:
            return image, f"{image.file_name}#{image.name}", image.caption, image.objects
        things, name = image.objects[first:end], image.file_name
        if self.protocol == "standard":
            name = f"{name}#{things[0].name or first}/{sentence}"
        elif len(things) < len(image.objects):
            name = f"{name}#{first}-{end - 1}"
        return image, name, statements([thing.sentences[sentence] for thing in things]), things


def _distractors(image: AnnotatedImage, thing: GroundedObject) -> int:
    """The number of other distinct masks of its category."""
    masks = [thing.mask]
    for other in image.objects:
        if other.category == thing.category and other.mask not in masks:
            masks.append(other.mask)
    return len(masks) - 1
