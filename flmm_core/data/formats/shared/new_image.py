"""Images to be written to a data set."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from flmm_core.data import rle
from flmm_core.data.sample import GroundedObject, Mask, Segment, StoredMask


class NewImage(NamedTuple):
    """One image to be written.

    Attributes:
        image: Pixels, or an encoded file as bytes or as a path, which is copied unchanged.
        file_name: Relative to the data set's folder of images, unique; its ending names the
            format that pixels are saved in.
        objects: At least one, with masks of the image's size. The default split is "train".
        captions: Captions in pieces that refer to objects by index, for formats that have them.
        link: Create a symbolic link to `image`, a path, instead of copying it.
    """

    image: Image.Image | bytes | Path
    file_name: str
    objects: Sequence[GroundedObject]
    captions: Sequence[Sequence[Segment]] = ()
    link: bool = False

    def save(self, path: Path) -> None:
        """Save, copy or link the image to `path`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.link and isinstance(self.image, Path):
            path.symlink_to(self.image.resolve())
        elif isinstance(self.image, Image.Image):
            # Run lengths take a third of the time of a PNG's usual way, and as many bytes.
            self.image.save(path, compress_level=1, compress_type=zlib.Z_RLE)
        elif isinstance(self.image, bytes):
            path.write_bytes(self.image)
        else:
            shutil.copyfile(self.image, path)

    def by_split(self) -> dict[str, list[int]]:
        """The indices of each split's objects."""
        splits: dict[str, list[int]] = {}
        for index, thing in enumerate(self.objects):
            splits.setdefault(thing.split or "train", []).append(index)
        return splits


def checked(images: Iterable[NewImage]) -> Iterator[tuple[NewImage, tuple[int, int]]]:
    """Each image and its (H, W), checked one at a time.

    Raises:
        ValueError: A file name occurs twice, an image has no objects, its masks are not all of
            its size, or an object has no sentence.
    """
    names: set[str] = set()
    for new in images:
        if new.file_name in names:
            raise ValueError(f"{new.file_name}: two images have this file name")
        names.add(new.file_name)
        masks = [thing.mask for thing in new.objects]
        sizes = {m.size if isinstance(m, StoredMask) else tuple(m["size"]) for m in masks}
        if isinstance(new.image, Image.Image):
            sizes.add((new.image.height, new.image.width))
        if not new.objects or len(sizes) != 1:
            raise ValueError(
                f"{new.file_name}: an image needs objects, all with masks of its size; "
                f"it has {len(new.objects)} objects and the sizes {sorted(sizes)}"
            )
        if not all(thing.sentences for thing in new.objects):
            raise ValueError(f"{new.file_name}: an object has no sentence")
        height, width = sizes.pop()
        yield new, (int(height), int(width))


def targets(thing: GroundedObject) -> list[Mask]:
    """The masks of the single objects that an object consists of; none if its mask is empty."""
    return [mask for mask in thing.parts or (thing.read_mask(),) if rle.area(mask)]


def plain_caption(objects: Sequence[GroundedObject]) -> tuple[Segment, ...]:
    """The objects' first sentences as a caption: "This picture shows A, B and C."."""
    pieces: list[Segment] = []
    for index, thing in enumerate(objects):
        between = "This picture shows " if not index else ", "
        if index and index == len(objects) - 1:
            between = " and "
        pieces += [Segment(between), Segment(thing.sentences[0], index)]
    return (*pieces, Segment("."))
