"""Our own format: a `metadata.jsonl` beside its images, which is also a Hugging Face imagefolder.

One image per line; the properties of its objects are lists of equal length:

    {"file_name": "images/1.png", "width": 128, "height": 96,
     "objects": {"phrases": [["the red ring", "ring on the left"], ["a star"]],
                 "segmentation": [{"size": [96, 128], "counts": "..."}, ...],
                 "category": ["ring", "star"], "slice": ["plain", "plain"]}}

`file_name` is relative to the file; `segmentation` is any COCO segmentation, an RLE without a pixel
if the phrases refer to nothing in the image. Optional: `category`, `slice`, `tags` (lists of
strings), `ignore` (segmentations or null), and captions in pieces that refer to objects by index,
or to none by -1:

    "captions": [[{"text": "There is ", "object": -1}, {"text": "a star", "object": 1}]]

Splits are folders: ROOT/train/metadata.jsonl, ROOT/val/metadata.jsonl, ... They are named in
ROOT/README.md for `datasets.load_dataset(ROOT)`, which by itself knows no splits but train,
validation and test.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.image_paths import spellings
from flmm_core.data.formats.shared.new_image import NewImage, checked
from flmm_core.data.records import (
    Record,
    expect,
    field,
    find_file,
    image_size,
    parse_json,
    read_lines,
    sentence,
    texts,
    unfit,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Segment, pieces_of
from flmm_core.errors import DataError, did_you_mean
from flmm_core.files import open_whole, printable, write_text

FILE_NAME = "metadata.jsonl"
OPTIONAL: dict[str, Any] = {"category": "", "slice": "", "tags": [], "ignore": None}
"""Optional lists in `objects`, and the default of their entries."""

_SPLIT_WORD = re.compile(
    r"(?<![^-._ 0-9/])(?:train(?:ing)?|valid(?:ation)?|val|dev|test(?:ing)?|eval(?:uation)?)"
    r"(?=[-._ 0-9/])"
)
"""By these words in names `datasets` guesses the split of a file, which its folder says here."""

_CARD = """---
configs:
- config_name: default
  data_files:
{splits}
---

# Images with masks and phrases

`datasets.load_dataset` reads this folder: a column `image`, and `objects` with `phrases` and
`segmentation` (COCO RLE).

{mark}
"""
_MARK = "<!-- Splits listed by flmm. Without this line it leaves the file as it is. -->"


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a file in its order, an image with captions once per caption.

    Masks are checked and compressed at once; images are only looked up.
    """
    path = _find(source.path, source.split)
    images: list[AnnotatedImage] = []
    lines: dict[str, int] = {}
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            continue
        with findings.part():
            where = f"line {number} of {path}"
            record = expect(parse_json(line, where), dict, where)
            file_name = field(record, "file_name", str, where)
            folders = source.image_folders([path.parent])
            said = _images(record, file_name, folders, where, findings)
            first = lines.setdefault(file_name, number)
            if first != number:
                raise DataError(
                    f"The image {file_name} occurs twice in {path}.",
                    found=f"On lines {first} and {number}.",
                    repair="Put all objects of an image on one line.",
                )
            images += said
    if not images and not findings.faults:
        raise DataError(f"The file {path} has no images.", found="It has no lines.")
    return tuple(images)


def _find(path: Path, split: str) -> Path:
    if path.is_file():
        if not split:
            return path
        raise DataError(
            f"The file {path} has no splits, but the split '{split}' was asked for.",
            repair="Leave '@' and the split away, or give the folder that holds "
            f"'{split}/{FILE_NAME}'.",
        )
    there = sorted(found.parent.name for found in path.glob(f"*/{FILE_NAME}"))
    return find_file(
        [path / split],
        [FILE_NAME],
        f"The file {path / split / FILE_NAME}",
        "Name a split after the '@', or give the path of the file.",
        found=f"{did_you_mean(split, there)} Splits: {', '.join(there) or 'none'}. ".lstrip(),
    )


def _images(
    record: Record, file_name: str, folders: Sequence[Path], where: str, findings: Findings
) -> list[AnnotatedImage]:
    """The images of a line, one per caption; none if one of its objects is faulty."""
    path = find_file(
        folders,
        spellings(file_name),
        f"The image {file_name} on {where}",
        "'file_name' is relative to the folder of the file.",
    )
    image_hw = image_size(record, where)
    columns = _columns(field(record, "objects", dict, where), where)
    objects: list[GroundedObject] = []
    for index, entry in enumerate(zip(*columns.values(), strict=True)):
        with findings.part():
            row = dict(zip(columns, entry, strict=True))
            objects.append(_object(row, str(index), image_hw, f"object {index} on {where}"))
    if len(objects) < len(columns["phrases"]):
        return []
    whole = AnnotatedImage(file_name, path, image_hw, tuple(objects))
    if record.get("captions") in (None, []):
        return [whole]
    images: list[AnnotatedImage] = []
    unnamed = set(range(len(objects)))
    for number, pieces in enumerate(field(record, "captions", list, where)):
        with findings.part():
            image = _captioned(whole, pieces, str(number), f"caption {number} on {where}")
            images.append(image)
            unnamed -= {int(thing.name) for thing in image.objects}
    for index in sorted(unnamed):
        findings.skip(f"object {index} on {where}", "no caption names it", counts=False)
    return images


def _columns(objects: Record, where: str) -> dict[str, list[Any]]:
    where = f"'objects' on {where}"
    phrases = field(objects, "phrases", list, where)
    if not phrases:
        raise DataError(
            f"{sentence(where)} has no objects.",
            found="Its lists are empty.",
            repair="Remove the line, or describe an object.",
        )
    columns = {"phrases": phrases, "segmentation": field(objects, "segmentation", list, where)}
    for key, default in OPTIONAL.items():
        left_out = objects.get(key) is None
        columns[key] = [default] * len(phrases) if left_out else field(objects, key, list, where)
    for key, values in columns.items():
        if len(values) != len(phrases):
            raise DataError(
                f"{sentence(where)} has lists of different lengths.",
                found=f"'phrases' has {len(phrases)} entries, '{key}' has {len(values)}.",
                repair="Every list has one entry for each object.",
            )
    return columns


def _object(row: Record, name: str, image_hw: tuple[int, int], where: str) -> GroundedObject:
    tags = row["tags"]
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise unfit(where, "tags", tags, "a list of strings")
    ignore = row["ignore"]
    if ignore is not None:
        ignore = rle.to_rle(ignore, *image_hw, source=f"the ignored pixels of {where}")
    mask = rle.to_rle(row["segmentation"], *image_hw, source=where)
    return GroundedObject(
        mask=mask,
        sentences=() if row["phrases"] == [] else texts(row["phrases"], "phrases", where),
        category=field(row, "category", str, where),
        slice=field(row, "slice", str, where),
        name=name,
        tags=frozenset(tags),
        ignore=ignore,
        absent=isinstance(row["segmentation"], dict) and not rle.area(mask),
    )


def _captioned(whole: AnnotatedImage, pieces: Any, name: str, where: str) -> AnnotatedImage:
    """The image with one of its captions and the objects that it refers to."""
    places: dict[int, int] = {}
    caption: list[Segment] = []
    for number, piece in enumerate(expect(pieces, list, where)):
        where_piece = f"piece {number} of {where}"
        text = field(piece, "text", str, where_piece)
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


def write(folder: Path, images: Iterable[NewImage]) -> None:
    """Write ROOT/SPLIT/metadata.jsonl, ROOT/SPLIT/images and ROOT/README.md."""
    write_splits(folder, images)
    write_card(folder)


def write_splits(folder: Path, images: Iterable[NewImage]) -> None:
    """Write ROOT/SPLIT/metadata.jsonl and ROOT/SPLIT/images.

    An image with objects of several splits is written to each of them. All segmentations are
    compressed RLE, so that every line has the same types. The metadata files are named last.
    """
    with ExitStack() as stack:
        files: dict[str, BinaryIO] = {}
        for new, (height, width) in checked(images):
            file_name = f"images/{image_name(new.file_name)}"
            for split, kept in new.by_split().items():
                path = folder / split / file_name
                if path.exists():
                    raise ValueError(f"{new.file_name}: another image is written to {file_name}")
                new.save(path)
                line = {
                    "file_name": file_name,
                    "width": width,
                    "height": height,
                    "objects": _new_columns([new.objects[index] for index in kept]),
                }
                if captions := _new_captions(new, kept):
                    line["captions"] = captions
                if split not in files:
                    files[split] = stack.enter_context(open_whole(folder / split / FILE_NAME))
                files[split].write(printable(f"{json.dumps(line, ensure_ascii=False)}\n").encode())


def image_name(file_name: str) -> str:
    """A file name in which `datasets` sees no split: "COCO_train2014_1.jpg" with a capital T."""
    return _SPLIT_WORD.sub(lambda word: word[0].capitalize(), file_name)


def write_card(folder: Path) -> None:
    """Write ROOT/README.md with the splits that are there, unless somebody else wrote one."""
    path = folder / "README.md"
    if path.exists() and _MARK.encode() not in path.read_bytes():
        return
    splits = sorted(file.parent.name for file in folder.glob(f"*/{FILE_NAME}"))
    listed = "\n".join(
        f"  - split: {json.dumps(re.sub(r'[^0-9A-Za-z_]', '_', name))}\n"
        f"    path: {json.dumps(f'{name}/**', ensure_ascii=False)}"
        for name in splits
    )
    write_text(path, _CARD.format(splits=listed, mark=_MARK))


def _new_columns(things: Sequence[GroundedObject]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {
        "phrases": [list(thing.sentences) for thing in things],
        "segmentation": [rle.to_json(thing.read_mask()) for thing in things],
        "category": [thing.category for thing in things],
        "slice": [thing.slice for thing in things],
    }
    if any(thing.tags for thing in things):
        columns["tags"] = [sorted(thing.tags) for thing in things]
    if any(thing.ignore for thing in things):
        columns["ignore"] = [thing.ignore and rle.to_json(thing.ignore) for thing in things]
    return columns


def _new_captions(new: NewImage, kept: Sequence[int]) -> list[list[dict[str, Any]]]:
    """The captions that refer only to objects of `kept`, for a line."""
    places = {index: place for place, index in enumerate(kept)} | {None: -1}
    return [
        [{"text": piece.text, "object": places[piece.phrase]} for piece in pieces_of(caption)]
        for caption in new.captions
        if all(piece.phrase in places for piece in caption)
    ]
