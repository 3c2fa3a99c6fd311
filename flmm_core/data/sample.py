"""What the readers of data sets hand over: words, masks and where the image lies. No torch.

An `AnnotatedImage` is what a file says; a `Sample` is what the flow is given, after a protocol
(`flmm_core.data.protocols`) has decided which words go together.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from flmm_core.segment import Segment as Segment


class Mask(TypedDict):
    """A mask as COCO's compressed run-length code; `flmm_core.data.rle` reads and writes it.

    A dict, because that is what pycocotools and every tool of the field take.
    """

    size: list[int]
    """[H, W] in pixels."""
    counts: bytes


class StoredMask(ABC):
    """A mask that stays in its file until it is asked for; picklable."""

    __slots__ = ()

    @property
    @abstractmethod
    def size(self) -> tuple[int, int]:
        """(H, W) in pixels."""

    @abstractmethod
    def read(self) -> Mask:
        """The mask, read and checked now.

        Raises:
            DataError: The file is missing, broken or does not fit the annotation.
        """


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that name one mask.

    Attributes:
        text: The words, without the caption around them.
        mask: The truth, at the image's size: all that the words name, joined. No pixel is
            inside where the words name nothing in the image.
        category: The data set's class name, or empty.
        slice: The part of the data set that scores are reported by ("plain", "relation", ...);
            every phrase is in one at most.
        tags: Further subsets that it is in, which may overlap ("plural", "thing", ...).
        ignore: Pixels that count neither as right nor as wrong, at the image's size and outside
            `mask`; None if all count.
        distractors: Other objects of its category that the source has in the image; None if
            there is no category.
    """

    text: str
    mask: Mask
    category: str = ""
    slice: str = ""
    tags: frozenset[str] = frozenset()
    ignore: Mask | None = None
    distractors: int | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One image with one caption, the flow's unit of work.

    Attributes:
        name: Names the sample in messages and results; unique within its source.
        image_path: The image, to be read with `flmm_core.data.images.read_image`.
        image_hw: Height and width in pixels that the masks were made for.
        segments: The caption in pieces; they refer to `phrases` by index.
        phrases: What is to be grounded, P >= 1.
    """

    name: str
    image_path: Path
    image_hw: tuple[int, int]
    segments: tuple[Segment, ...]
    phrases: tuple[Phrase, ...]

    def __post_init__(self) -> None:
        named = {segment.phrase for segment in self.segments} - {None}
        if named != set(range(len(self.phrases))):
            raise ValueError(
                f"sample {self.name!r}: its segments name the phrases {sorted(map(str, named))}, "
                f"it has {len(self.phrases)}"
            )

    @property
    def caption(self) -> str:
        """The pieces joined, with nothing between them."""
        return "".join(segment.text for segment in self.segments)


@dataclass(frozen=True, slots=True)
class GroundedObject:
    """One object of an image and the sentences that refer to it.

    Attributes:
        mask: At the image's size, as in `Phrase`; or where it is to be read from.
        sentences: At least one; the first is the one that "flmm-paper" takes.
        category: Class name, or empty.
        slice: As in `Phrase`.
        split: The split it belongs to; readers keep one, writers write it.
        name: What the file calls it (a ref id, an index).
        tags: As in `Phrase`.
        ignore: As in `Phrase`.
        parts: For writers only: the single things that make up `mask`, where they are several.
    """

    mask: Mask | StoredMask
    sentences: tuple[str, ...]
    category: str = ""
    slice: str = ""
    split: str = ""
    name: str = ""
    tags: frozenset[str] = frozenset()
    ignore: Mask | None = None
    parts: tuple[Mask, ...] = ()

    def read_mask(self) -> Mask:
        """The mask, from its file if it is there still; DataError if that is broken."""
        return self.mask.read() if isinstance(self.mask, StoredMask) else self.mask


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image with its objects, as a file describes it.

    Attributes:
        file_name: As the file has it.
        path: Where it was found.
        image_hw: Height and width in pixels by the file.
        objects: At least one.
        caption: The whole text that the file gives, in pieces that name every object by its
            index; empty if the sentences stand alone and a protocol has to put them together.
        name: What tells this caption from others of the same image.
    """

    file_name: str
    path: Path
    image_hw: tuple[int, int]
    objects: tuple[GroundedObject, ...]
    caption: tuple[Segment, ...] = ()
    name: str = ""
