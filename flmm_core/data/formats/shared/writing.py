"""What the writers of data sets share: the images they take, and whole files or none."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Self

from PIL import Image

from flmm_core.data.sample import GroundedObject, Segment, StoredMask


class NewImage(NamedTuple):
    """One image to be written; a plain tuple of the first three does as well.

    Attributes:
        image: Pixels, or an encoded file as bytes or as a path, which is copied unchanged.
        file_name: Relative to the data set's folder of images, unique; its ending names the
            format that pixels are saved in.
        objects: At least one, with masks of the image's size.
        captions: Whole texts, each in pieces that name objects by their index; formats that know
            no captions leave them away.
        link: Make a symbolic link to `image`, a path, instead of copying it.
    """

    image: Image.Image | bytes | Path
    file_name: str
    objects: Sequence[GroundedObject]
    captions: Sequence[Sequence[Segment]] = ()
    link: bool = False


def new_images(
    pictures: Iterable[NewImage | tuple[Any, str, Sequence[GroundedObject]]],
) -> Iterator[tuple[NewImage, tuple[int, int]]]:
    """Each image with its (H, W), checked one at a time.

    Raises:
        ValueError: A file name comes twice, an image has no objects, its masks are not all of
            its size, or an object has no sentence.
    """
    names: set[str] = set()
    for entry in pictures:
        picture = NewImage(*entry)
        if picture.file_name in names:
            raise ValueError(f"{picture.file_name}: two images have this file name")
        names.add(picture.file_name)
        masks = [thing.mask for thing in picture.objects]
        sizes = {m.size if isinstance(m, StoredMask) else tuple(m["size"]) for m in masks}
        if isinstance(picture.image, Image.Image):
            sizes.add((picture.image.height, picture.image.width))
        if not picture.objects or len(sizes) != 1:
            raise ValueError(
                f"{picture.file_name}: an image needs objects, all with masks of its size; "
                f"it has {len(picture.objects)} objects and the sizes {sorted(sizes)}"
            )
        if not all(thing.sentences for thing in picture.objects):
            raise ValueError(f"{picture.file_name}: an object has no sentence")
        height, width = sizes.pop()
        yield picture, (height, width)


def plain_caption(objects: Sequence[GroundedObject]) -> tuple[Segment, ...]:
    """The objects' first sentences as one text: "This image shows A, B and C."."""
    pieces: list[Segment] = []
    for index, thing in enumerate(objects):
        between = "This image shows " if not index else ", "
        if index and index == len(objects) - 1:
            between = " and "
        pieces += [Segment(between), Segment(thing.sentences[0], index)]
    return (*pieces, Segment("."))


def write_image(picture: NewImage, path: Path) -> None:
    """Save, copy or link the image to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if picture.link and isinstance(picture.image, Path):
        path.symlink_to(picture.image.resolve())
    elif isinstance(picture.image, Image.Image):
        picture.image.save(path)
    elif isinstance(picture.image, bytes):
        path.write_bytes(picture.image)
    else:
        shutil.copyfile(picture.image, path)


class WholeFile:
    """A file written bit by bit that is never seen half-written under its own name.

    A context: leaving it gives the file its name, leaving it by an error removes it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = path.with_name(f"{path.name}.partial")

    def __enter__(self) -> Self:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self._partial.open("wb")
        return self

    def write(self, data: bytes) -> None:
        """Append."""
        self._file.write(data)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._file.close()
        if kind is None:
            self._partial.replace(self._path)
        else:
            self._partial.unlink()


def write_whole(path: Path, data: bytes) -> None:
    """Write a file so that it is never seen half-written under its own name."""
    with WholeFile(path) as file:
        file.write(data)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A folder to write to, which takes the name `folder` when all is written.

    Until then it lies beside it under another name, or in it if it is there already (empty, then);
    an error or Ctrl-C removes it. If another process has made it meanwhile, the first one stays.
    """
    there = folder.is_dir()
    parent = folder if there else folder.parent
    parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=parent))
    try:
        yield aside
        aside.chmod(0o755)
        if there:
            for path in list(aside.iterdir()):
                path.rename(folder / path.name)
            return
        try:
            aside.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
