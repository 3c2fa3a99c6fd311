"""Panoptic Narrative Grounding (PNG, ICCV 2021) as it is distributed, and a writer of such files.

    ROOT/annotations/png_coco_val2017.json   list of narratives: {"image_id": "139", "caption",
                                             "segments": [{"utterance", "noun", "plural",
                                                           "segment_ids": ["3226956", ...]}]}
    ROOT/annotations/panoptic_val2017.json   which segments an image has, of which category
    ROOT/annotations/panoptic_segmentation/val2017/000000000139.png   (or .../panoptic_val2017/)
    ROOT/images/val2017/000000000139.jpg     (or ROOT/val2017/)

The three JSON files and PNG folders may lie in ROOT as well as in ROOT/annotations. Splits: train
and val, for train2017 and val2017.

Protocol: a narrative is one sample, its utterances joined with nothing between them. Every noun
utterance with segment ids is one phrase, its truth the union of its segments. Tags: "plural" with
several segments, else "singular" (as the published evaluation counts, whatever the file's own
"plural" says); "thing" if one of its segments is of a category with isthing, else "stuff".
Narratives in which no phrase has a segment are left out, counted and listed; nothing replaces
them. (The publishers' own baseline also leaves out narratives that its tokenizer cuts otherwise
than the file; ours stay.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.coco_files import coco_names, first_file
from flmm_core.data.formats.shared.fields import brief, field, mapping, sentence
from flmm_core.data.formats.shared.json_files import read_json
from flmm_core.data.formats.shared.panoptic import (
    Panoptic,
    SegmentsMask,
    check_png_size,
    segment_colour,
)
from flmm_core.data.formats.shared.writing import (
    NewImage,
    new_images,
    plain_caption,
    write_image,
    write_whole,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask, Segment
from flmm_core.errors import DataError, did_you_mean

PNG_FOLDERS = (
    "annotations/panoptic_segmentation/{}",
    "annotations/panoptic_{}",
    "panoptic_{}",
    "panoptic_segmentation/{}",
)
PICTURE_FOLDERS = ("images/{}", "{}", "coco/{}", "images")


def read_narratives(
    path: Path, split: str, findings: Findings | None = None
) -> tuple[AnnotatedImage, ...]:
    """The narratives of a split in the file's order, each with the phrases that have segments.

    Ids, categories, files and the sizes of the PNGs are checked here; the PNGs' pixels are read
    when a mask is asked for.

    Args:
        path: ROOT.
        split: "train" or "val"; "train2017" and "val2017" are the same.
        findings: Collects faults and the narratives that are left out; without it the first fault
            is raised.

    Raises:
        DataError: A file or image is missing, broken or does not fit another.
    """
    findings = findings or Findings()
    whole = split if split.endswith("2017") else f"{split}2017"
    narratives_path = _find_file(path, "png_coco_{}.json", whole)
    narratives = read_json(narratives_path)
    if not isinstance(narratives, list):
        raise DataError(
            f"The file {narratives_path} is not a list of narratives.",
            found=f"It is a {type(narratives).__name__}.",
        )
    files = _Files(path, whole, findings)
    pictures: list[AnnotatedImage] = []
    for number, record in enumerate(narratives):
        with findings.part():
            where = f"narrative {number} of {narratives_path}"
            picture = _narrative(mapping(record, where), number, where, files, split)
            if picture.objects:
                pictures.append(picture)
            else:
                findings.skip(where, "none of its phrases has a segment")
    return tuple(pictures)


def _find_file(path: Path, pattern: str, split: str) -> Path:
    name = pattern.format(split)
    found = first_file((path / "annotations", path), [name])
    if found is not None:
        return found
    begin, end = pattern.split("{}")
    there = sorted(
        file.name.removeprefix(begin).removesuffix(end)
        for folder in (path / "annotations", path)
        for file in folder.glob(pattern.format("*"))
    )
    raise DataError(
        f"The file {name} is not in {path}. {did_you_mean(split, there)}".rstrip(),
        found=f"Looked there and in {path / 'annotations'}; such files are there for: "
        f"{', '.join(there) or 'no split'}.",
        repair="Get it from the project's page, or name another split after the '@'.",
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """What is known of one image."""

    file_name: str
    path: Path
    png: Path
    image_hw: tuple[int, int]
    segments: dict[int, tuple[str, bool]]


class _Files:
    """The panoptic files of a split; every image is looked up once."""

    def __init__(self, root: Path, split: str, findings: Findings) -> None:
        self.panoptic = Panoptic(_find_file(root, "panoptic_{}.json", split), findings)
        self._png_folders = [root / sub.format(split) for sub in PNG_FOLDERS]
        self._image_folders = [root / sub.format(split) for sub in PICTURE_FOLDERS]
        self._places: dict[int, _Place | DataError] = {}

    def place(self, image_id: int, asker: str) -> _Place:
        """An image's files and segments; the same DataError every time if they are broken."""
        if image_id not in self._places:
            try:
                self._places[image_id] = self._look_up(image_id, asker)
            except DataError as error:
                self._places[image_id] = error
        place = self._places[image_id]
        if isinstance(place, DataError):
            raise place
        return place

    def _look_up(self, image_id: int, asker: str) -> _Place:
        size = self.panoptic.size(image_id, asker)
        name = self.panoptic.image_name(image_id)
        png_name = self.panoptic.png_name(image_id)
        picture = _find(self._image_folders, coco_names(name, image_id), "picture")
        png = _find(self._png_folders, [png_name], "panoptic PNG")
        check_png_size(png, size)
        segments = {
            segment_id: self.panoptic.category(segment, image_id)
            for segment_id, segment in self.panoptic.segments(image_id).items()
        }
        return _Place(name, picture, png, size, segments)


def _find(folders: Sequence[Path], names: Sequence[str], what: str) -> Path:
    found = first_file(folders, names)
    if found is None:
        raise DataError(
            f"The {what} {names[0]} is missing.",
            found="Looked for:\n" + "\n".join(f"  {f / n}" for f in folders for n in names),
            repair="Put COCO's 2017 images and panoptic PNGs (https://cocodataset.org/#download) "
            "into these folders.",
        )
    return found


def _narrative(
    record: dict[Any, Any], number: int, where: str, files: _Files, split: str
) -> AnnotatedImage:
    image_id = _number(field(record, "image_id", object, where), "image_id", where)
    place = files.place(image_id, where)
    caption: list[Segment] = []
    objects: list[GroundedObject] = []
    for index, piece in enumerate(field(record, "segments", list, where)):
        where_piece = f"segment {index} of {where}"
        text = field(mapping(piece, where_piece), "utterance", str, where_piece)
        listed = field(piece, "segment_ids", list, where_piece)
        ids = tuple(dict.fromkeys(_number(i, "segment_ids", where_piece) for i in listed))
        if not ids or not piece.get("noun", True):
            caption += [Segment(text)] if text else []
            continue
        if not text.strip():
            raise DataError(f"{sentence(where_piece)} has ids but no words.")
        unknown = [segment_id for segment_id in ids if segment_id not in place.segments]
        if unknown:
            raise DataError(
                f"The segment {unknown[0]} is not in {files.panoptic.path}.",
                found=f"It is among the segment_ids of {where_piece}, which is about image "
                f"{image_id}.",
                repair="Use narratives and panoptic files of one release.",
            )
        caption.append(Segment(text, len(objects)))
        kinds = [place.segments[segment_id] for segment_id in ids]
        objects.append(
            GroundedObject(
                mask=SegmentsMask(place.png, ids, place.image_hw),
                sentences=(text.strip(),),
                category=", ".join(dict.fromkeys(name for name, _ in kinds)),
                split=split,
                name=str(index),
                tags=frozenset(
                    {
                        "plural" if len(ids) > 1 else "singular",
                        "thing" if any(is_thing for _, is_thing in kinds) else "stuff",
                    }
                ),
            )
        )
    return AnnotatedImage(
        place.file_name,
        place.path,
        place.image_hw,
        tuple(objects),
        tuple(caption),
        str(number),
    )


def _number(value: Any, key: str, where: str) -> int:
    """Ids are written as strings of digits, sometimes as numbers."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if type(value) is int:
        return value
    raise DataError(
        f"{sentence(where)} has {brief(value)} in '{key}'.",
        found="Expected an id: a whole number.",
    )


# --- writing -----------------------------------------------------------------------------------


def write_narratives(
    folder: Path, pictures: Iterable[NewImage | tuple[Any, str, Sequence[GroundedObject]]]
) -> Path:
    """Write images, their objects and their captions as a PNG folder.

    An image without captions gets one made of its objects' first sentences. An object's `parts`
    are a segment each, an object without a pixel has none; no two segments may overlap. The tag
    "stuff" makes an object's category one. The JSON files are written last and whole.

    Args:
        folder: The ROOT; it is created.
        images: See `NewImage`; read once, one at a time.

    Returns:
        `folder`, which `read_narratives` takes.
    """
    books: dict[str, _Book] = {}
    for number, (picture, size) in enumerate(new_images(pictures), start=1):
        splits = {thing.split or "train" for thing in picture.objects}
        if len(splits) > 1:
            raise ValueError(f"{picture.file_name}: a narrative is of one split, not {splits}")
        split = f"{splits.pop()}2017"
        write_image(picture, folder / "images" / split / picture.file_name)
        book = books.setdefault(split, _Book())
        png = folder / "annotations" / "panoptic_segmentation" / split / f"{number:012d}.png"
        png.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(book.add(picture, number, size)).save(png)
    for split, book in books.items():
        target = folder / "annotations"
        write_whole(target / f"panoptic_{split}.json", json.dumps(book.panoptic).encode())
        write_whole(target / f"png_coco_{split}.json", json.dumps(book.narratives).encode())
    return folder


class _Book:
    """The two JSON files of a split while they are written."""

    def __init__(self) -> None:
        self.narratives: list[dict[str, Any]] = []
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[tuple[str, bool], int] = {}

    @property
    def panoptic(self) -> dict[str, Any]:
        categories = [
            {"id": i, "name": name, "supercategory": name, "isthing": int(is_thing)}
            for (name, is_thing), i in self._categories.items()
        ]
        return {
            "images": self._images,
            "annotations": self._annotations,
            "categories": categories,
        }

    def add(self, picture: NewImage, image_id: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        """Note an image; (H, W, 3) for its panoptic PNG."""
        height, width = size
        self._images.append(
            {"id": image_id, "file_name": picture.file_name, "height": height, "width": width}
        )
        canvas = np.zeros((height, width, 3), dtype=np.uint8)
        infos: list[dict[str, Any]] = []
        ids: dict[bytes, int] = {}
        of_object: list[list[str]] = []
        for thing in picture.objects:
            masks = [m for m in thing.parts or (thing.read_mask(),) if rle.area(m)]
            for mask in masks:
                if mask["counts"] not in ids:
                    ids[mask["counts"]] = self._paint(canvas, mask, thing, infos, picture)
            of_object.append([str(ids[mask["counts"]]) for mask in masks])
        self._annotations.append(
            {"image_id": image_id, "file_name": f"{image_id:012d}.png", "segments_info": infos}
        )
        for caption in picture.captions or (plain_caption(picture.objects),):
            self.narratives.append(_record(caption, of_object, image_id))
        return canvas

    def _paint(
        self,
        canvas: NDArray[np.uint8],
        mask: Mask,
        thing: GroundedObject,
        infos: list[dict[str, Any]],
        picture: NewImage,
    ) -> int:
        """The id of a new segment."""
        inside = rle.decode(mask)
        if canvas[inside].any():
            raise ValueError(f"{picture.file_name}: two segments overlap")
        segment_id = 70_001 * (len(infos) + 1)  # all three bytes of it are used
        canvas[inside] = segment_colour(segment_id)
        kind = (thing.category or "object", "stuff" not in thing.tags)
        infos.append(
            {
                "id": segment_id,
                "category_id": self._categories.setdefault(kind, len(self._categories) + 1),
                "area": rle.area(mask),
                "bbox": list(rle.bbox(mask)),
                "iscrowd": 0,
            }
        )
        return segment_id


def _record(
    caption: Sequence[Segment], of_object: Sequence[list[str]], image_id: int
) -> dict[str, Any]:
    segments = []
    for piece in caption:
        ids = [] if piece.phrase is None else of_object[piece.phrase]
        segments.append(
            {
                "utterance": piece.text,
                "segment_ids": ids,
                "noun": piece.phrase is not None,
                "plural": len(ids) > 1,
            }
        )
    return {
        "image_id": str(image_id),
        "caption": "".join(piece.text for piece in caption),
        "segments": segments,
    }
