"""Panoptic Narrative Grounding (PNG, ICCV 2021) as it is distributed, and a writer of such files.

    ROOT/annotations/png_coco_val2017.json   list of narratives: {"image_id": "139", "caption",
                                             "segments": [{"utterance", "noun", "plural",
                                                           "segment_ids": ["3226956", ...]}]}
    ROOT/annotations/panoptic_val2017.json   which segments an image has, of which category
    ROOT/annotations/panoptic_segmentation/val2017/000000000139.png   (or .../panoptic_val2017/)
    ROOT/images/val2017/000000000139.jpg     (or ROOT/val2017/)

The JSON files and PNG folders may also be in ROOT. Splits: train and val (train2017, val2017).

A narrative is one sample. Its utterances are aligned with "caption", which holds the spaces between
them; without a caption they are joined as they stand. Every noun utterance with segment ids is one
phrase, its mask the union of its segments. Tags: "plural" with several segments, else "singular"
(as in the published evaluation, regardless of the file's "plural"); "thing" if one of its segments
has a category with isthing, else "stuff". Narratives in which no phrase has a segment are skipped,
and so are those whose utterances are not the words of their caption. (The publishers' baseline also
skips narratives that its tokenizer splits differently from the file.)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from flmm_core.data.findings import Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.coco_json import coco_names
from flmm_core.data.formats.shared.image_paths import ImagePaths
from flmm_core.data.formats.shared.new_image import NewImage, checked, plain_caption, targets
from flmm_core.data.formats.shared.panoptic import (
    NewPanoptic,
    Panoptic,
    Segments,
    SegmentsMask,
    check_png_size,
    png_name,
)
from flmm_core.data.formats.shared.utterances import align
from flmm_core.data.records import (
    Record,
    expect,
    field,
    find_file,
    read_json,
    sentence,
    unfit,
)
from flmm_core.data.sample import (
    AnnotatedImage,
    GroundedObject,
    Segment,
    caption_text,
    pieces_of,
)
from flmm_core.errors import DataError, did_you_mean
from flmm_core.files import write_json

PNG_FOLDERS = (
    "annotations/panoptic_segmentation/{}",
    "annotations/panoptic_{}",
    "panoptic_{}",
    "panoptic_segmentation/{}",
)
IMAGE_FOLDERS = ("images/{}", "{}", "coco/{}", "images")
GET_FILES = (
    "Put COCO's 2017 images and panoptic PNGs (https://cocodataset.org/#download) into these "
    "folders; the images may be in another, --data png:PATH@SPLIT,images=DIR."
)


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The narratives of a split in the file's order; the pixels of a PNG are read with a mask."""
    root, split = source.path, source.split
    whole = split if split.endswith("2017") else f"{split}2017"
    narratives_path = _find_json(root, "png_coco_{}.json", whole)
    narratives = expect(read_json(narratives_path), list, f"the file {narratives_path}")
    files = _Files(source, whole, findings)
    images: list[AnnotatedImage] = []
    for number, record in enumerate(narratives):
        with findings.part():
            where = f"narrative {number} of {narratives_path}"
            image = _narrative(record, where, files, split)
            if not image.objects:
                findings.skip(where, "none of its phrases has a segment", counts=False)
            elif not image.caption:
                findings.skip(where, "its utterances are not the words of its caption")
            else:
                images.append(replace(image, name=str(number)))
    return tuple(images)


def _find_json(path: Path, pattern: str, split: str) -> Path:
    folders = path / "annotations", path
    begin, end = pattern.split("{}")
    there = sorted(
        file.name.removeprefix(begin).removesuffix(end)
        for folder in folders
        for file in folder.glob(pattern.format("*"))
    )
    return find_file(
        folders,
        [pattern.format(split)],
        f"The file {pattern.format(split)}",
        "Get it from the project's page, or name another split after the '@'.",
        found=f"{did_you_mean(split, there)} There are: {', '.join(there) or 'none'}. ".lstrip(),
    )


class _Files:
    """The files of a split; every image is looked up once."""

    def __init__(self, source: Source, split: str, findings: Findings) -> None:
        root = source.path
        self.panoptic = Panoptic(_find_json(root, "panoptic_{}.json", split), findings)
        self._png_folders = [root / sub.format(split) for sub in PNG_FOLDERS]
        folders = source.image_folders(root / sub.format(split) for sub in IMAGE_FOLDERS)
        self._images = ImagePaths(folders, self.panoptic.file_names)
        self._found: dict[int, tuple[AnnotatedImage, Path, Segments]] = {}

    def find(self, image_id: int, asker: str) -> tuple[AnnotatedImage, Path, Segments]:
        """An image without objects, its PNG and segments; `asker` names the record with its id."""
        if image_id not in self._found:
            names = [self.panoptic.png_name(image_id, asker)]
            size, name = self.panoptic.size(image_id), self.panoptic.file_name(image_id)
            path = self._images.find(
                name, f"The image {name}", GET_FILES, others=coco_names(image_id)
            )
            png = find_file(self._png_folders, names, f"The panoptic PNG {names[0]}", GET_FILES)
            check_png_size(png, size)
            image = AnnotatedImage(name, path, size, ())
            self._found[image_id] = image, png, self.panoptic.segments(image_id)
        return self._found[image_id]


def _narrative(record: Record, where: str, files: _Files, split: str) -> AnnotatedImage:
    """One record; without a caption if its utterances are not the words of its own."""
    image_id = _number(field(record, "image_id", object, where), "image_id", where)
    image, png, segments = files.find(image_id, where)
    caption: list[Segment] = []
    objects: list[GroundedObject] = []
    for index, piece in enumerate(field(record, "segments", list, where)):
        where_piece = f"segment {index} of {where}"
        text = field(piece, "utterance", str, where_piece)
        listed = field(piece, "segment_ids", list, where_piece)
        ids = tuple(dict.fromkeys(_number(i, "segment_ids", where_piece) for i in listed))
        if not ids or not piece.get("noun", True):
            caption += [Segment(text)] if text else []
            continue
        if not text.strip():
            raise DataError(f"{sentence(where_piece)} has ids but no words.")
        for segment_id in ids:
            if segment_id not in segments:
                raise DataError(
                    f"The segment {segment_id} is not in {files.panoptic.path}.",
                    found=f"It is among the segment_ids of {where_piece}, which is about image "
                    f"{image_id}.",
                    repair="Use narratives and panoptic files of one release.",
                )
        caption.append(Segment(text, len(objects)))
        kinds = [segments[segment_id] for segment_id in ids]
        is_thing = any(kind[1] for kind in kinds)
        tags = "plural" if len(ids) > 1 else "singular", "thing" if is_thing else "stuff"
        objects.append(
            GroundedObject(
                mask=SegmentsMask(image.image_hw, png, ids),
                sentences=(text.strip(),),
                category=", ".join(dict.fromkeys(name for name, _ in kinds)),
                split=split,
                name=str(index),
                tags=frozenset(tags),
            )
        )
    whole = record.get("caption")
    if whole is not None:
        caption = align(caption, field(record, "caption", str, where)) or []
    return replace(image, objects=tuple(objects), caption=tuple(caption))


def _number(value: Any, key: str, where: str) -> int:
    """Ids are written as strings of digits, sometimes as numbers."""
    if isinstance(value, str) and value.isascii() and value.isdigit():
        return int(value)
    if type(value) is int:
        return value
    raise unfit(where, key, value, "an id: a whole number")


def write(folder: Path, images: Iterable[NewImage]) -> None:
    """Write a PNG folder, the JSON files last.

    An image without captions gets one from its objects' first sentences. Each of an object's
    `parts` is a segment; segments may not overlap. The tag "stuff" makes its category one.
    """
    annotations = folder / "annotations"
    files: dict[str, tuple[NewPanoptic, list[dict[str, Any]]]] = {}
    for number, (new, image_hw) in enumerate(checked(images), start=1):
        splits = list(new.by_split())
        if len(splits) > 1:
            raise ValueError(f"{new.file_name}: a narrative is of one split, not {splits}")
        split = f"{splits[0]}2017"
        panoptic, narratives = files.setdefault(split, (NewPanoptic(), []))
        panoptic.add_image(new, image_hw, folder / "images" / split, number)
        pixels, ids = panoptic.paint([(thing, targets(thing)) for thing in new.objects], image_hw)
        png = annotations / "panoptic_segmentation" / split / png_name(number)
        png.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(png)
        for caption in new.captions or (plain_caption(new.objects),):
            narratives.append(_record(caption, ids, number))
    for split, (panoptic, narratives) in files.items():
        write_json(annotations / f"panoptic_{split}.json", panoptic.content(), compact=True)
        write_json(annotations / f"png_coco_{split}.json", narratives, compact=True)


def _record(
    caption: Sequence[Segment], ids: Sequence[Sequence[int]], image_id: int
) -> dict[str, Any]:
    segments = []
    for piece in pieces_of(caption):
        its_ids = [] if piece.phrase is None else [str(i) for i in ids[piece.phrase]]
        segment = {"utterance": piece.text, "segment_ids": its_ids}
        segments.append({**segment, "noun": piece.phrase is not None, "plural": len(its_ids) > 1})
    return {
        "image_id": str(image_id),
        "caption": caption_text(caption),
        "segments": segments,
    }
