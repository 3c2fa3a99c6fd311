"""Turns any source into our own format, once: a metadata.jsonl with its images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath, PureWindowsPath

from flmm_core.data.findings import Findings, Skipped, Track
from flmm_core.data.formats.jsonl import write_jsonl
from flmm_core.data.formats.shared.writing import NewImage, whole_folder
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Segment
from flmm_core.data.sources import read_source
from flmm_core.errors import UsageError


def convert_source(
    text: str,
    folder: Path,
    *,
    link: bool = False,
    track: Track = iter,
) -> tuple[Path, tuple[Skipped, ...]]:
    """Write a source to FOLDER/SPLIT, the split as the source names it, else "train".

    All is written aside and takes its name at the end: a fault or Ctrl-C leaves nothing. What is
    read from there gives the same phrases and masks under either protocol.

    Args:
        text: `NAME[:PATH][@SPLIT]`.
        folder: Other splits may be in it already.
        link: Make symbolic links to the images instead of copies.
        track: Goes through the images and shows how far it is.

    Returns:
        FOLDER/SPLIT, and what was left out because it cannot be scored.

    Raises:
        UsageError: The text is of another form, or the split is in the folder already.
        DataError: The source has a fault.
    """
    findings = Findings()
    source, pictures = read_source(text, findings)
    split = source.split or "train"
    target = folder / split
    if target.exists():
        raise UsageError(
            f"The folder '{target}' is there already.",
            repair="Give another folder, or remove it first.",
        )
    groups: dict[Path, list[AnnotatedImage]] = {}
    for picture in pictures:
        groups.setdefault(picture.path, []).append(picture)
    with whole_folder(target) as aside:
        write_jsonl(aside, _new_images(track(list(groups.values())), split, link))
        _lift(aside / split, aside)
    return target, tuple(findings.skipped)


def _lift(inner: Path, outer: Path) -> None:
    """Move what the writer put under the split's name one folder up."""
    for path in list(inner.iterdir()):
        path.rename(outer / path.name)
    inner.rmdir()


def _new_images(
    groups: Iterable[Sequence[AnnotatedImage]], split: str, link: bool
) -> Iterator[NewImage]:
    names: set[str] = set()
    for pictures in groups:
        objects: list[GroundedObject] = []
        captions: list[tuple[Segment, ...]] = []
        for picture in pictures:
            captions += [_shifted(picture.caption, len(objects))] if picture.caption else []
            objects += [replace(thing, split=split) for thing in picture.objects]
        name = _free_name(pictures[0], names)
        yield NewImage(pictures[0].path, name, objects, captions, link)


def _shifted(caption: Sequence[Segment], by: int) -> tuple[Segment, ...]:
    return tuple(
        piece if piece.phrase is None else Segment(piece.text, piece.phrase + by)
        for piece in caption
    )


def _free_name(picture: AnnotatedImage, names: set[str]) -> str:
    """A new file name below the new folder, as near to the old one as can be.

    The ending is the file's own: the annotations may call it otherwise.
    """
    parts = PurePosixPath(PureWindowsPath(picture.file_name).as_posix()).parts
    kept = [part for part in parts if part.strip("./") and ":" not in part]
    if kept[0] == "images" and len(kept) > 1:  # where the writer puts them anyway
        kept = kept[1:]
    stem, ending = PurePosixPath(*kept).with_suffix("").as_posix(), picture.path.suffix
    name, number = f"{stem}{ending}", 2
    while name in names:
        name, number = f"{stem}-{number}{ending}", number + 1
    names.add(name)
    return name
