"""Our own format: a `metadata.jsonl` beside its pictures, which is also a Hugging Face imagefolder.

One picture a line; what belongs to objects stands in lists of equal length:

    {"file_name": "images/1.png", "width": 128, "height": 96,
     "objects": {"phrases": [["the red ring", "ring on the left"], ["a star"]],
                 "segmentation": [{"size": [96, 128], "counts": "..."}, ...],
                 "category": ["ring", "star"], "slice": ["plain", "plain"]}}

`file_name` is relative to the file. `segmentation` takes all that COCO has (polygons, RLE); the
writer writes compressed RLE, so that every line has the same types. `category` and `slice` may be
left out. Splits are folders: ROOT/train/metadata.jsonl, ROOT/val/metadata.jsonl, ...
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flmm_core.data import coco_masks
from flmm_core.data.fields import brief, field, mapping, picture_size, sentence
from flmm_core.data.sample import AnnotatedPicture, GroundedObject
from flmm_core.data.writing import NewPicture, new_pictures, write_picture, write_whole
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


def read_jsonl(path: Path) -> tuple[AnnotatedPicture, ...]:
    """The pictures of a file, in its order.

    Every line is checked and every mask compressed here, so that a fault is named before any work
    is done; pictures are only looked up. Blank lines are passed over.

    Raises:
        DataError: Names the file and the line (1-based) of the first fault.
    """
    pictures: list[AnnotatedPicture] = []
    lines: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                picture = _picture(line, path, f"line {number} of {path}")
                first = lines.setdefault(picture.file_name, number)
                if first != number:
                    raise DataError(
                        f"The picture {picture.file_name} stands twice in {path}.",
                        found=f"On lines {first} and {number}.",
                        repair="Put all objects of a picture on one line.",
                    )
                pictures.append(picture)
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read.", found=f"{error.strerror or error}."
        ) from error
    if not pictures:
        raise DataError(f"The file {path} has no pictures.", found="It has no lines.")
    return tuple(pictures)


def _picture(line: bytes, path: Path, where: str) -> AnnotatedPicture:
    try:
        record = mapping(json.loads(line), where)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{sentence(where)} is not whole JSON.",
            found=f"{error}.",
            repair="The line may be cut off; write it again.",
        ) from error
    file_name = field(record, "file_name", str, where)
    picture_path = path.parent / file_name
    if not picture_path.is_file():
        raise DataError(
            f"The picture {file_name} on {where} is missing.",
            found=f"Looked for {picture_path}.",
            repair="'file_name' is relative to the folder of the file.",
        )
    height, width = picture_size(record, where)
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
    objects = []
    for index in range(count):
        source = f"object {index} on {where}"
        objects.append(
            GroundedObject(
                mask=coco_masks.to_rle(segmentations[index], height, width, source=source),
                sentences=_phrases(phrases[index], source),
                category=_text(categories[index], "category", source),
                slice=_text(slices[index], "slice", source),
                name=str(index),
            )
        )
    return AnnotatedPicture(file_name, picture_path, (height, width), tuple(objects))


def _column(
    columns: dict[Any, Any], key: str, count: int, where: str, default: Any = None
) -> list[Any]:
    """A list with one entry an object; `count` times the default where it may be left out."""
    if key not in columns and default is not None:
        return [default] * count
    values = field(columns, key, list, where)
    if len(values) != count:
        raise DataError(
            f"{sentence(where)} has lists of different lengths.",
            found=f"'phrases' has {count} entries, '{key}' has {len(values)}.",
            repair="Every list has one entry for each object.",
        )
    return values


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
    folder: Path, pictures: Iterable[NewPicture | tuple[Any, str, Sequence[GroundedObject]]]
) -> Path:
    """Write pictures and their objects as ROOT/SPLIT/metadata.jsonl, one folder a split.

    A picture with objects of several splits stands in each of them, with that split's objects;
    an object without a split goes to "train". Pictures go to ROOT/SPLIT/images, as they come;
    the metadata files are written last and whole.

    Args:
        folder: The ROOT; it is created.
        pictures: See `NewPicture`; read once, one at a time.

    Returns:
        `folder`, which `find_jsonl` takes together with a split.
    """
    lines: dict[str, list[str]] = {}
    for picture, (height, width) in new_pictures(pictures):
        splits: dict[str, list[GroundedObject]] = {}
        for thing in picture.objects:
            splits.setdefault(thing.split or "train", []).append(thing)
        for split, things in splits.items():
            file_name = f"images/{picture.file_name}"
            write_picture(picture, folder / split / file_name)
            record = {
                "file_name": file_name,
                "width": int(width),
                "height": int(height),
                "objects": {
                    "phrases": [list(thing.sentences) for thing in things],
                    "segmentation": [
                        {
                            "size": [int(height), int(width)],
                            "counts": thing.mask["counts"].decode(),
                        }
                        for thing in things
                    ],
                    "category": [thing.category for thing in things],
                    "slice": [thing.slice for thing in things],
                },
            }
            lines.setdefault(split, []).append(json.dumps(record, ensure_ascii=False))
    for split, texts in lines.items():
        write_whole(folder / split / FILE_NAME, "".join(f"{t}\n" for t in texts).encode())
    return folder
