"""Our own format: a `metadata.jsonl` beside its images, which is also a Hugging Face imagefolder.

One image a line; what belongs to objects stands in lists of equal length:

    {"file_name": "images/1.png", "width": 128, "height": 96,
     "objects": {"phrases": [["the red ring", "ring on the left"], ["a star"]],
                 "segmentation": [{"size": [96, 128], "counts": "..."}, ...],
                 "category": ["ring", "star"], "slice": ["plain", "plain"]}}

`file_name` is relative to the file. `segmentation` takes all that COCO has (polygons, RLE); the
writer writes compressed RLE, so that every line has the same types. `category` and `slice` may be
left out, and so may `tags` (lists of strings: subsets that scores are reported by) and `ignore`
(segmentations or null: pixels that count neither way). A mask without a pixel inside says that the
phrases name nothing in the image. `captions` are whole texts about the image, each in pieces
that name objects by their index, or nothing by -1; each is a sample of its own then:

    "captions": [[{"text": "There is ", "object": -1}, {"text": "a star", "object": 1}]]

Splits are folders: ROOT/train/metadata.jsonl, ROOT/val/metadata.jsonl, ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.fields import brief, field, image_size, mapping, sentence
from flmm_core.data.formats.shared.json_files import is_file
from flmm_core.data.formats.shared.writing import NewImage, WholeFile, new_images, write_image
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask, Segment
from flmm_core.errors import DataError, did_you_mean

FILE_NAME = "metadata.jsonl"


def find_jsonl(path: Path, split: str | None = None) -> Path:
    """The file meant by a path and a split: a file itself, or a folder's, or a split's.

    Raises:
        DataError: There is none; the splits that exist are listed.
    """
    if path.is_file():
        if split is None:
            return path
        raise DataError(
            f"The file {path} has no splits, but the split '{split}' was asked for.",
            repair="Leave '@' and the split away, or give the folder that holds "
            f"'{split}/{FILE_NAME}'.",
        )
    wanted = path / split / FILE_NAME if split else path / FILE_NAME
    if wanted.is_file():
        return wanted
    splits = sorted(found.parent.name for found in path.glob(f"*/{FILE_NAME}"))
    raise DataError(
        f"The file {wanted} is missing. {did_you_mean(split or '', splits)}".rstrip(),
        found=f"Splits in {path}: {', '.join(splits) or 'none'}.",
        repair="Name a split after the '@', or give the path of the file.",
    )


def read_jsonl(path: Path, findings: Findings | None = None) -> tuple[AnnotatedImage, ...]:
    """The images of a file, in its order; one with captions as often as it has captions.

    Every line is checked and every mask compressed here, so that a fault is named before any work
    is done; images are only looked up. Blank lines are passed over.

    Args:
        path: The file.
        findings: Collects faults; without it the first is raised.

    Raises:
        DataError: Names the file and the line (1-based) of the first fault.
    """
    findings = findings or Findings()
    pictures: list[AnnotatedImage] = []
    lines: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                with findings.part():
                    where = f"line {number} of {path}"
                    record = _record(line, where)
                    file_name = field(record, "file_name", str, where)
                    said = _images(record, file_name, path, where, findings)
                    first = lines.setdefault(file_name, number)
                    if first != number:
                        raise DataError(
                            f"The image {file_name} stands twice in {path}.",
                            found=f"On lines {first} and {number}.",
                            repair="Put all objects of an image on one line.",
                        )
                    pictures += said
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read.", found=f"{error.strerror or error}."
        ) from error
    if not pictures and not findings.faults:
        raise DataError(f"The file {path} has no images.", found="It has no lines.")
    return tuple(pictures)


def _record(line: bytes, where: str) -> dict[Any, Any]:
    try:
        return mapping(json.loads(line), where)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{sentence(where)} is not whole JSON.",
            found=f"{error}.",
            repair="The line may be cut off; write it again.",
        ) from error


def _images(
    record: dict[Any, Any], file_name: str, path: Path, where: str, findings: Findings
) -> tuple[AnnotatedImage, ...]:
    """What a line says: one image, or one for each caption; none if its objects are faulty."""
    image_path = path.parent / file_name
    if not is_file(image_path):
        raise DataError(
            f"The image {file_name} on {where} is missing.",
            found=f"Looked for {image_path}.",
            repair="'file_name' is relative to the folder of the file.",
        )
    height, width = image_size(record, where)
    columns = field(record, "objects", dict, where)
    where_objects = f"'objects' on {where}"
    phrases = field(columns, "phrases", list, where_objects)
    count = len(phrases)
    if not count:
        raise DataError(
            f"{sentence(where)} has no objects.",
            found="Its lists in 'objects' are empty.",
            repair="Remove the line, or describe an object.",
        )
    segmentations = _column(columns, "segmentation", count, where_objects)
    categories = _column(columns, "category", count, where_objects, default="")
    slices = _column(columns, "slice", count, where_objects, default="")
    tags = _column(columns, "tags", count, where_objects, default=())
    ignored = _column(columns, "ignore", count, where_objects, default=None)
    objects: list[GroundedObject] = []
    for index in range(count):
        source = f"object {index} on {where}"
        with findings.part():
            objects.append(
                GroundedObject(
                    mask=rle.to_rle(segmentations[index], height, width, source=source),
                    sentences=_phrases(phrases[index], source),
                    category=_text(categories[index], "category", source),
                    slice=_text(slices[index], "slice", source),
                    name=str(index),
                    tags=_tags(tags[index], source),
                    ignore=_ignored(ignored[index], height, width, source),
                )
            )
    if len(objects) < count:
        return ()
    whole = AnnotatedImage(file_name, image_path, (height, width), tuple(objects))
    if record.get("captions") in (None, []):
        return (whole,)
    pictures: list[AnnotatedImage] = []
    unnamed = set(range(count))
    for number, pieces in enumerate(field(record, "captions", list, where)):
        with findings.part():
            picture = _captioned(whole, pieces, str(number), f"caption {number} on {where}")
            pictures.append(picture)
            unnamed -= {int(thing.name) for thing in picture.objects}
    for index in sorted(unnamed):
        findings.skip(f"object {index} on {where}", "no caption names it")
    return tuple(pictures)


def _captioned(whole: AnnotatedImage, pieces: Any, name: str, where: str) -> AnnotatedImage:
    """The image with one of its captions and the objects that this one names."""
    if not isinstance(pieces, list):
        raise DataError(
            f"{sentence(where)} is {brief(pieces)}.", found="Expected a list of pieces."
        )
    places: dict[int, int] = {}
    caption: list[Segment] = []
    for number, piece in enumerate(pieces):
        where_piece = f"piece {number} of {where}"
        text = field(mapping(piece, where_piece), "text", str, where_piece)
        index = field(piece, "object", int, where_piece)
        if not -1 <= index < len(whole.objects):
            raise DataError(
                f"{sentence(where_piece)} names the object {index}.",
                found=f"The line has {len(whole.objects)} objects; -1 names none.",
            )
        if index >= 0 and not text.strip():
            raise DataError(f"{sentence(where_piece)} names an object without words.")
        phrase = None if index == -1 else places.setdefault(index, len(places))
        caption.append(Segment(text, phrase))
    if not places:
        raise DataError(f"{sentence(where)} names no object.", repair="Remove it.")
    things = tuple(whole.objects[index] for index in places)
    return replace(whole, objects=things, caption=tuple(caption), name=name)


_REQUIRED = object()


def _column(
    columns: dict[Any, Any], key: str, count: int, where: str, default: Any = _REQUIRED
) -> list[Any]:
    """A list with one entry an object; `count` times the default where it may be left out."""
    if columns.get(key) is None and default is not _REQUIRED:
        return [default] * count
    values = field(columns, key, list, where)
    if len(values) != count:
        raise DataError(
            f"{sentence(where)} has lists of different lengths.",
            found=f"'phrases' has {count} entries, '{key}' has {len(values)}.",
            repair="Every list has one entry for each object.",
        )
    return values


def _tags(value: Any, source: str) -> frozenset[str]:
    if not isinstance(value, (list, tuple)) or not all(isinstance(tag, str) for tag in value):
        raise DataError(
            f"The tags of {source} are {brief(value)}.", found="Expected a list of strings."
        )
    return frozenset(value)


def _ignored(value: Any, height: int, width: int, source: str) -> Mask | None:
    if value is None:
        return None
    return rle.to_rle(value, height, width, source=f"the ignored pixels of {source}")


def _phrases(said: Any, source: str) -> tuple[str, ...]:
    if not isinstance(said, list) or not said or not all(isinstance(s, str) for s in said):
        raise DataError(
            f"The phrases of {source} are {brief(said)}.",
            found="Expected a list of strings, at least one.",
        )
    sentences = tuple(s.strip() for s in said)
    if not all(sentences):
        raise DataError(f"A phrase of {source} is empty.")
    return sentences


def _text(value: Any, key: str, source: str) -> str:
    if not isinstance(value, str):
        raise DataError(f"The {key} of {source} is {brief(value)}.", found="Expected a string.")
    return value


def write_jsonl(
    folder: Path, pictures: Iterable[NewImage | tuple[Any, str, Sequence[GroundedObject]]]
) -> Path:
    """Write images and their objects as ROOT/SPLIT/metadata.jsonl, one folder a split.

    An image with objects of several splits stands in each of them, with that split's objects;
    an object without a split goes to "train". Images go to ROOT/SPLIT/images, as they come;
    the metadata files are written last and whole.

    Args:
        folder: The ROOT; it is created.
        images: See `NewImage`; read once, one at a time.

    Returns:
        `folder`, which `find_jsonl` takes together with a split.
    """
    with ExitStack() as stack:
        files: dict[str, WholeFile] = {}
        for picture, (height, width) in new_images(pictures):
            file_name = f"images/{picture.file_name}"
            record = {"file_name": file_name, "width": int(width), "height": int(height)}
            for split, kept in _by_split(picture.objects).items():
                write_image(picture, folder / split / file_name)
                line = record | {"objects": _columns([picture.objects[i] for i in kept])}
                if captions := _captions(picture, kept):
                    line["captions"] = captions
                if split not in files:
                    files[split] = stack.enter_context(WholeFile(folder / split / FILE_NAME))
                files[split].write(f"{json.dumps(line, ensure_ascii=False)}\n".encode())
    return folder


def _by_split(objects: Sequence[GroundedObject]) -> dict[str, list[int]]:
    """The indices of each split's objects."""
    splits: dict[str, list[int]] = {}
    for index, thing in enumerate(objects):
        splits.setdefault(thing.split or "train", []).append(index)
    return splits


def _columns(things: Sequence[GroundedObject]) -> dict[str, list[Any]]:
    """`objects` of a line; columns that are empty for all are left out if they may be."""
    columns: dict[str, list[Any]] = {
        "phrases": [list(thing.sentences) for thing in things],
        "segmentation": [_segmentation(thing.read_mask()) for thing in things],
        "category": [thing.category for thing in things],
        "slice": [thing.slice for thing in things],
    }
    if any(thing.tags for thing in things):
        columns["tags"] = [sorted(thing.tags) for thing in things]
    if any(thing.ignore for thing in things):
        columns["ignore"] = [thing.ignore and _segmentation(thing.ignore) for thing in things]
    return columns


def _segmentation(mask: Mask) -> dict[str, Any]:
    return {"size": [int(side) for side in mask["size"]], "counts": mask["counts"].decode()}


def _captions(picture: NewImage, kept: Sequence[int]) -> list[list[dict[str, Any]]]:
    """The captions that name only objects of `kept`, as a line has them."""
    places = {index: place for place, index in enumerate(kept)} | {None: -1}
    return [
        [{"text": piece.text, "object": places[piece.phrase]} for piece in caption]
        for caption in picture.captions
        if all(piece.phrase in places for piece in caption)
    ]
