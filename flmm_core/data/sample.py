"""What the readers of data sets return: phrases, masks and the path of the image. No torch.

An `AnnotatedImage` is one record of a file; a `Sample` is what the model gets, after a protocol
(`flmm_core.data.protocols`) has decided which phrases share a caption.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from flmm_core.segment import Segment as Segment
from flmm_core.segment import caption_text as caption_text
from flmm_core.segment import pieces_of as pieces_of


class Mask(TypedDict):
    """A mask in COCO's compressed run-length encoding, as the dict that pycocotools takes."""

    size: list[int]
    """[H, W] in pixels."""
    counts: bytes


@dataclass(frozen=True, slots=True)
class StoredMask(ABC):
    """A mask that is read from its file on demand; picklable."""

    size: tuple[int, int]
    """(H, W) in pixels."""

    @abstractmethod
    def read(self) -> Mask:
        """The mask; DataError if its file is missing, broken or does not fit the annotation."""


@dataclass(frozen=True, slots=True)
class Phrase:
    """Words that refer to one mask.

    Attributes:
        text: The words, without the caption around them.
        mask: The ground truth at the image's size: the union of all that the words refer to.
            Empty if they refer to nothing in the image.
        category: Class name in the data set, or empty.
        slice: The part of the data set that scores are reported by ("plain", "relation", ...);
            at most one per phrase.
        tags: Further subsets, which may overlap ("plural", "thing", ...).
        ignore: Pixels that are not scored, at the image's size and outside `mask`; None if all
            are scored.
        distractors: The number of other objects of its category that are annotated in the image;
            None without a category.
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
    """One image with one caption.

    Attributes:
        name: Identifies the sample in messages and results; unique within its source.
        image_path: The image, for `flmm_core.data.images.read_image`.
        image_hw: Height and width of the image and the masks in pixels.
        segments: The caption in pieces, which refer to `phrases` by index.
        phrases: The phrases to ground, P >= 1.
        as_stored: For `read_image`: the image is not turned as its EXIF data say.
        narrated: The caption is the data's own and names what it names, beside other words.
    """

    name: str
    image_path: Path
    image_hw: tuple[int, int]
    segments: tuple[Segment, ...]
    phrases: tuple[Phrase, ...]
    as_stored: bool = False
    narrated: bool = False

    def __post_init__(self) -> None:
        named = {segment.phrase for segment in self.segments} - {None}
        if named != set(range(len(self.phrases))):
            raise ValueError(
                f"sample {self.name!r}: its segments name the phrases {sorted(map(str, named))}, "
                f"it has {len(self.phrases)}"
            )

    @property
    def caption(self) -> str:
        """The whole caption."""
        return caption_text(self.segments)


@dataclass(frozen=True, slots=True)
class GroundedObject:
    """One object of an image and the sentences that refer to it.

    Attributes:
        mask: As in `Phrase`, or the file that it is read from.
        sentences: At least one; "flmm-paper" takes the first.
        category: As in `Phrase`; so are `slice`, `tags` and `ignore`.
        split: The split that it belongs to.
        name: Its id or index in the file.
        parts: For writers: the masks of the single objects that make up `mask`, if several.
        absent: The data says that nothing in the image is meant; an empty mask without it is no
            such statement (see `Findings`).
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
    absent: bool = False

    def read_mask(self) -> Mask:
        """The mask; DataError if it is in a file that is broken."""
        return self.mask.read() if isinstance(self.mask, StoredMask) else self.mask


@dataclass(frozen=True, slots=True)
class AnnotatedImage:
    """One image with its objects, as annotated.

    Attributes:
        file_name: As written in the annotation file.
        path: Where it was found.
        image_hw: Height and width in pixels as annotated.
        objects: At least one.
        caption: The annotated caption, in pieces that refer to every object by its index; empty
            if a protocol has to put the sentences together.
        name: Distinguishes this caption from others of the same image.
        as_stored: As in `Sample`.
        categories: Class names of all that is annotated in the image, also of what no phrase
            refers to; those of the objects may be missing.
    """

    file_name: str
    path: Path
    image_hw: tuple[int, int]
    objects: tuple[GroundedObject, ...]
    caption: tuple[Segment, ...] = ()
    name: str = ""
    as_stored: bool = False
    categories: frozenset[str] = frozenset()

    def only(self, indices: Collection[int]) -> AnnotatedImage:
        """The image with some of its objects; those that remain in the caption are plain words."""
        places = {index: place for place, index in enumerate(indices)}
        caption = tuple(
            replace(piece, phrase=None if piece.phrase is None else places.get(piece.phrase))
            for piece in self.caption
        )
        objects = tuple(self.objects[index] for index in indices)
        return replace(self, objects=objects, caption=caption)
