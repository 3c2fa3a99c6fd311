"""Converts any source to our own format, a metadata.jsonl with its images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from flmm_core.config import MAX_SKIPPED, SkipLimit
from flmm_core.data.findings import Findings, Skipped, Track
from flmm_core.data.formats import jsonl
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.images import is_left_turned, read_image
from flmm_core.data.left_out import LeftOut
from flmm_core.data.protocols import ImageSamples
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Segment
from flmm_core.data.sources import read_source
from flmm_core.errors import UsageError
from flmm_core.files import whole_folder


def convert_source(
    text: str,
    folder: Path,
    *,
    link: bool = False,
    max_skipped: str = MAX_SKIPPED,
    track: Track = iter,
) -> tuple[Path, tuple[Skipped, ...]]:
    """Write a source to FOLDER/SPLIT, with the source's split or "train", whole or not at all.

    Both protocols read the same phrases and masks from it. Images are read, so that nothing is
    written that `check_source` finds faulty.

    Args:
        text: `NAME[:PATH][@SPLIT]`.
        folder: May contain other splits.
        link: Create symbolic links to the images instead of copies. An image that was annotated
            as stored but that EXIF data turn is saved anew, as PNG, without these data.
        max_skipped: How much of the source may be left out because it cannot be used.

    Returns:
        FOLDER/SPLIT, and the skipped items.

    Raises UsageError as `parse_source` and if the split exists, DataError if the source or an image
    is faulty, or if too much is left out.
    """
    split, groups, skipped = read_by_image(text, max_skipped)
    target = folder / (split or "train")
    write_by_split(folder, {target.name: groups}, link=link, track=track)
    return target, skipped


def read_by_image(
    text: str, max_skipped: str
) -> tuple[str, list[list[AnnotatedImage]], tuple[Skipped, ...]]:
    """The split that a source names, its records by image file, and what is left out."""
    findings, limit = Findings(), SkipLimit.given(max_skipped)
    source, images = read_source(text, findings)
    LeftOut(ImageSamples(images, "standard", skipped=findings.skipped, title=text), limit)
    groups: dict[Path, list[AnnotatedImage]] = {}
    for image in images:
        groups.setdefault(image.path, []).append(image)
    return source.split, list(groups.values()), tuple(findings.skipped)


def write_by_split(
    folder: Path,
    splits: Mapping[str, Sequence[Sequence[AnnotatedImage]]],
    *,
    link: bool = False,
    track: Track = iter,
) -> None:
    """Write records by image file, as `read_by_image` returns them, to FOLDER/SPLIT.

    Whole or not at all; UsageError if one of these folders is there, see also `convert_source`.
    """
    for split in splits:
        if (folder / split).exists():
            raise UsageError(
                f"The folder '{folder / split}' is there already.",
                repair="Give another folder, or remove it first.",
            )
    was_there = folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with whole_folder(folder) as aside:
            groups = [(split, group) for split, groups in splits.items() for group in groups]
            jsonl.write_splits(aside, _new_images(track(groups), link))
    except BaseException:
        if not was_there:
            folder.rmdir()
        raise
    jsonl.write_card(folder)


def _new_images(
    groups: Iterable[tuple[str, Sequence[AnnotatedImage]]], link: bool
) -> Iterator[NewImage]:
    names: set[str] = set()
    for split, images in groups:
        path, image_hw, as_stored = images[0].path, images[0].image_hw, images[0].as_stored
        pixels = [
            read_image(path, image_hw=size, as_stored=as_stored)
            for size in dict.fromkeys(image.image_hw for image in images)
        ]
        objects: list[GroundedObject] = []
        captions: list[tuple[Segment, ...]] = []
        for image in images:
            captions += [_shifted(image.caption, len(objects))] if image.caption else []
            objects += [replace(thing, split=split) for thing in image.objects]
        if is_left_turned(path, image_hw, as_stored=as_stored):  # other readers would turn it
            yield NewImage(pixels[0], _free_name(images[0], names, ".png"), objects, captions)
        else:
            name = _free_name(images[0], names, path.suffix)
            yield NewImage(path, name, objects, captions, link)


def _shifted(caption: Sequence[Segment], by: int) -> tuple[Segment, ...]:
    return tuple(
        piece if piece.phrase is None else replace(piece, phrase=piece.phrase + by)
        for piece in caption
    )


def _free_name(image: AnnotatedImage, names: set[str], ending: str) -> str:
    """A unique file name within the new folder, similar to the old one, with this ending."""
    parts = PurePosixPath(PureWindowsPath(image.file_name).as_posix()).parts
    kept = [part for part in parts if part.strip("./") and ":" not in part]
    if kept[0] == "images" and len(kept) > 1:  # where the writer puts them anyway
        kept = kept[1:]
    stem = PurePosixPath(*kept).with_suffix("").as_posix()
    name, number = jsonl.image_name(f"{stem}{ending}"), 2
    while name in names:
        name, number = jsonl.image_name(f"{stem}-{number}{ending}"), number + 1
    names.add(name)
    return name
