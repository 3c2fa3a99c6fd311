"""Which words of an image go into one caption: the two protocols of the field, by name.

Numbers of different protocols cannot be compared, so the name stands beside every result.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args, overload

import numpy as np

from flmm_core.data.findings import Skipped
from flmm_core.data.sample import (
    AnnotatedImage,
    GroundedObject,
    Mask,
    Phrase,
    Sample,
    StoredMask,
)
from flmm_core.errors import UsageError, did_you_mean
from flmm_core.segment import Segment

Protocol = Literal["flmm-paper", "standard"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


def check_protocol(name: str) -> Protocol:
    """The protocol of that name; UsageError for any other."""
    for known in PROTOCOLS:
        if name == known:
            return known
    raise UsageError(
        f"Unknown protocol '{name}'. {did_you_mean(name, PROTOCOLS)}".rstrip(),
        found=f"Protocols: {', '.join(PROTOCOLS)}.",
        repair="'standard' scores every sentence alone; 'flmm-paper' puts the first sentence of "
        "each object of an image into one caption.",
    )


class LazySamples(Sequence[Sample]):
    """A sequence whose samples are made when asked for; picklable for DataLoader workers.

    Attributes:
        skipped: What the files hold but cannot be scored, with the reason; never replaced.
    """

    skipped: tuple[Skipped, ...] = ()

    def _make(self, index: int) -> Sample:
        """The sample at `index`, 0 <= index < len(self)."""
        raise IndexError(index)

    def extent(self, index: int) -> tuple[int, int, int]:
        """Height and width of a sample's image in pixels, and characters of its caption.

        Reads no file, where `_make` may read masks.
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

    "flmm-paper": one sample an image, its caption the first sentence of each object, each
    followed by "." which names nothing. "standard": one sample a sentence, followed by ".".
    An image that brings its own caption (a narrative) is one sample under either: its task is to
    ground the phrases where they stand. Every object of every image is there; what the reader
    had to leave out is in `skipped`.

    Args:
        images: As a reader gives them.
        protocol: One of `PROTOCOLS`.
        source: Put before every sample's name, so that names stay unique over several sources.
        skipped: What the reader left out.
    """

    def __init__(
        self,
        pictures: Sequence[AnnotatedImage],
        protocol: str,
        source: str = "",
        skipped: Sequence[Skipped] = (),
    ) -> None:
        self.skipped = tuple(skipped)
        self.pictures = tuple(pictures)
        self.protocol = check_protocol(protocol)
        self.source = source
        places: list[tuple[int, int, int]] = []
        for number, picture in enumerate(self.pictures):
            if picture.caption:
                places.append((number, 0, 0))
                continue
            for position, thing in enumerate(picture.objects):
                places += [(number, position, i) for i in range(len(thing.sentences))]
        self._sentences = np.array(places, dtype=np.int32).reshape(-1, 3)

    @property
    def folder(self) -> Path:
        """The deepest folder that holds all images, absolute."""
        parents = {picture.path.absolute().parent for picture in self.pictures}
        return Path(os.path.commonpath(parents)) if parents else Path.cwd()

    def __len__(self) -> int:
        return len(self.pictures) if self.protocol == "flmm-paper" else len(self._sentences)

    def _make(self, index: int) -> Sample:
        picture, position, sentence = self._place(index)
        if picture.caption:
            return self._narrative(picture)
        if self.protocol == "flmm-paper":
            said = [(thing, thing.sentences[0]) for thing in picture.objects]
            return self._sample(picture, said, picture.file_name)
        thing = picture.objects[position]
        name = f"{picture.file_name}#{thing.name or position}/{sentence}"
        return self._sample(picture, [(thing, thing.sentences[sentence])], name)

    def _place(self, index: int) -> tuple[AnnotatedImage, int, int]:
        """The image of a sample, and the object and the sentence that it is about."""
        if self.protocol == "flmm-paper":
            return self.pictures[index], 0, 0
        number, position, sentence = self._sentences[index].tolist()
        return self.pictures[number], position, sentence

    def extent(self, index: int) -> tuple[int, int, int]:
        """As in `LazySamples`."""
        picture, position, sentence = self._place(index)
        if picture.caption:
            characters = sum(len(piece.text) for piece in picture.caption)
        elif self.protocol == "flmm-paper":
            characters = sum(len(thing.sentences[0]) + 1 for thing in picture.objects)
        else:
            characters = len(picture.objects[position].sentences[sentence]) + 1
        return *picture.image_hw, characters

    def _sample(
        self, picture: AnnotatedImage, said: list[tuple[GroundedObject, str]], name: str
    ) -> Sample:
        segments: list[Segment] = []
        phrases: list[Phrase] = []
        for index, (thing, text) in enumerate(said):
            segments += [Segment(text, index), Segment(".")]
            phrases.append(_phrase(picture, thing, text))
        return self._named(picture, segments, phrases, name)

    def _narrative(self, picture: AnnotatedImage) -> Sample:
        phrases = [
            _phrase(
                picture,
                thing,
                "".join(s.text for s in picture.caption if s.phrase == index).strip(),
            )
            for index, thing in enumerate(picture.objects)
        ]
        return self._named(picture, picture.caption, phrases, f"{picture.file_name}#{picture.name}")

    def _named(
        self,
        picture: AnnotatedImage,
        segments: Sequence[Segment],
        phrases: Sequence[Phrase],
        name: str,
    ) -> Sample:
        whole = f"{self.source}/{name}" if self.source else name
        return Sample(whole, picture.path, picture.image_hw, tuple(segments), tuple(phrases))


def _phrase(picture: AnnotatedImage, thing: GroundedObject, text: str) -> Phrase:
    return Phrase(
        text,
        thing.read_mask(),
        thing.category,
        thing.slice,
        thing.tags,
        thing.ignore,
        _distractors(picture, thing) if thing.category else None,
    )


def _distractors(picture: AnnotatedImage, thing: GroundedObject) -> int:
    """How many other masks of its category there are; one that is named twice counts once."""
    masks: list[Mask | StoredMask] = [thing.mask]
    for other in picture.objects:
        if other.category == thing.category and other.mask not in masks:
            masks.append(other.mask)
    return len(masks) - 1
