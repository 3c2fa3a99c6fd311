"""Images with masks beside them: an image of one object, or of all, and a table that names them.

One mask an object: a table "metadata" (.csv, .json, .yaml) with a row for each, and the columns

    image,mask,phrase                  also file_name; mask_path; text, caption, sentence, label
    images/a.jpg,masks/a_1.png,the red mug

or no table and a folder for each image, whose file names are the phrases:

    ROOT/images/a.jpg   ROOT/masks/a/the_red_mug.png   ROOT/masks/a/spoon_1.png, spoon_2.png

One mask an image (a label map): a table "classes" (.csv, .json, .yaml, .txt) that names its values,
or its colors, and masks named like the images:

    value,name       or   name,r,g,b         ROOT/images/a.jpg   ROOT/masks/a.png, a_mask.png, ...
    1,mug                 mug,128,0,0

A column "value" in the table of masks says which value of a label map a phrase means. A split is a
folder (ROOT/SPLIT/images, or ROOT/images/SPLIT), or a column "split" in the table. Masks of one
phrase in an image are joined. In a label map, 0 and classes named "background" are no phrases; 255
and classes named "void" or "ignore" are not scored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmm_core.data import rle
from flmm_core.data.findings import DegenerateError, Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.class_masks import class_phrase
from flmm_core.data.formats.shared.class_names import (
    ClassNames,
    pick,
    read_class_names,
    whole_number,
)
from flmm_core.data.formats.shared.degenerate import NO_PIXEL
from flmm_core.data.formats.shared.image_paths import ImagePaths
from flmm_core.data.formats.shared.label_maps import (
    class_objects,
    colors_of,
    marked_pixels,
    open_mask,
    values_of,
)
from flmm_core.data.formats.shared.tables import TABLE_ENDINGS, read_table
from flmm_core.data.images import IMAGE_ENDINGS, image_size_of, size_for_mask
from flmm_core.data.records import brief, expect, sentence, texts
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask, StoredMask
from flmm_core.errors import DataError

TABLES = ("metadata", "masks", "annotations", "phrases")
CLASSES = ("classes", "class_dict", "labels", "names", "labelmap")
IMAGE_KEYS = ("image", "file_name", "image_path", "img", "filename")
MASK_KEYS = ("mask", "mask_path", "mask_file", "mask_name", "segmentation")
PHRASE_KEYS = (
    "phrase", "phrases", "text", "caption", "sentence", "sentences", "expression", "label", "name",
    "class",
)  # fmt: skip
IMAGE_FOLDERS = ("images", "image", "imgs", "JPEGImages", "")
MASK_FOLDERS = ("masks", "mask", "labels", "annotations", "segmentations", "gt", "")
MASK_NAMES = ("{}", "{}_mask", "{}_seg", "{}_label", "{}_labels", "{}_L", "{}-mask", "mask_{}")


@dataclass(frozen=True, slots=True)
class MaskFiles(StoredMask):
    """The union of some masks: each a file, and the value in it or None for all that is marked."""

    parts: tuple[tuple[Path, int | None], ...]

    def read(self) -> Mask:
        region = np.zeros(self.size, dtype=np.bool_)
        for path, value in self.parts:
            image = open_mask(path)
            _check_size(path, (image.height, image.width), self.size)
            region |= marked_pixels(image) if value is None else values_of(image, path) == value
        if not region.any():
            raise DegenerateError(f"the mask {self.parts[0][0]}", NO_PIXEL)
        return rle.encode(region)


def _check_size(path: Path, size: tuple[int, int], image_hw: tuple[int, int]) -> None:
    if size != image_hw:
        raise DataError(
            f"The mask {path} does not have the size of its image.",
            found=f"It is {size[0]} x {size[1]}, the image {image_hw[0]} x {image_hw[1]} "
            "(height x width).",
            repair="Save the mask at the size of the image.",
        )


def _size_of(image: Path, mask: Path) -> tuple[int, int]:
    """(H, W) of an image and its mask; DataError if they differ."""
    mask_hw = image_size_of(mask, upright=False)
    _check_size(mask, mask_hw, image_hw := size_for_mask(image, mask_hw))
    return image_hw


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images in the order of the table, or sorted by name. PATH is ROOT or the table."""
    path, split = source.path, source.split
    if path.is_file():
        return _of_table(path, split, source, findings)
    roots = [path / split, path] if split else [path]
    if table := _find(roots, TABLES, TABLE_ENDINGS):
        return _of_table(table, split if table.parent == path else "", source, findings)
    classes = _find(
        [*roots, *(root / "masks" for root in roots)], CLASSES, (*TABLE_ENDINGS, ".txt")
    )
    names = read_class_names(classes) if classes else None
    images: list[AnnotatedImage] = []
    for image, masks in _pairs(source, names is None):
        with findings.part():
            if names is None:
                found = _stored(image, [((_words(m),), m, None) for m in masks], source)
            else:
                found = _label_map(image, masks[0], names, source, findings)
            if found.objects:
                images.append(found)
            else:
                findings.skip(f"the image {image}", "no class is marked in it", counts=False)
    if not images and not findings.faults and not findings.skipped:
        raise DataError(
            f"There are no masks that can be named in {path}.",
            found=f"Looked for a table ({', '.join(TABLES)}), for one of classes "
            f"({', '.join(CLASSES)}), and for masks/NAME/PHRASE.png beside images/NAME.jpg"
            f"{f', in the split {split!r}' if split else ''}.",
            repair="Add a metadata.csv with the columns image, mask and phrase.",
        )
    return tuple(images)


def _find(roots: Iterable[Path], stems: Iterable[str], endings: Iterable[str]) -> Path | None:
    names = [f"{stem}{ending}" for stem in stems for ending in endings]
    return next((r / name for r in roots for name in names if (r / name).is_file()), None)


def _words(mask: Path) -> str:
    """The phrase in a file's name, without a number that tells masks of one phrase apart."""
    return class_phrase(re.sub(r"(?<=\D)[-_ ]\d+$", "", mask.stem))


# --- a table with a row a mask -------------------------------------------------------------------


def _of_table(
    table: Path, split: str, source: Source, findings: Findings
) -> tuple[AnnotatedImage, ...]:
    rows = expect(read_table(table), list, f"the file {table}")
    entries: dict[str, list[tuple[tuple[str, ...], str, int | None]]] = {}
    splits: set[str] = set()
    for number, record in enumerate(rows, start=1):
        with findings.part():
            where = f"row {number} of {table}"
            row = {str(k).lower(): v for k, v in expect(record, dict, where).items()}
            its_split = str(row.get("split") or "")
            splits.add(its_split)
            if split and its_split != split:
                continue
            name, mask = (_text(row, keys, where) for keys in (IMAGE_KEYS, MASK_KEYS))
            said = pick(row, PHRASE_KEYS)
            if not isinstance(said, list):
                said = [_text(row, PHRASE_KEYS, where)]
            words = texts(said, "phrase", where)
            entries.setdefault(name, []).append((words, mask, whole_number(row.get("value"))))
    if split and not entries and not findings.faults:
        raise DataError(
            f"There is no split '{split}' in {table}.",
            found=f"Its splits: {', '.join(sorted(filter(None, splits))) or 'none'}.",
            repair="Name one of them after the '@'.",
        )
    names = [mask for listed in entries.values() for _, mask, _ in listed]
    folders = [table.parent / folder for folder in IMAGE_FOLDERS]
    finders = [
        ImagePaths(source.image_folders(folders), entries),
        ImagePaths([table.parent / folder for folder in MASK_FOLDERS], names),
    ]
    images: list[AnnotatedImage] = []
    for name, listed in entries.items():
        with findings.part():
            repair = "Paths are relative to the table's folder."
            image = finders[0].find(name, f"The image {name} of {table}", repair)
            found = [
                (words, finders[1].find(mask, f"The mask {mask} of {table}", repair), value)
                for words, mask, value in listed
            ]
            images.append(_stored(image, found, source, name))
    return tuple(images)


def _text(row: dict[str, Any], keys: tuple[str, ...], where: str) -> str:
    value = pick(row, keys)
    if not isinstance(value, str):
        raise DataError(
            f"{sentence(where)} has no '{keys[0]}'.",
            found=f"Its columns: {brief(list(row))}; expected one of: {', '.join(keys)}.",
        )
    return value


def _stored(
    image: Path,
    listed: Sequence[tuple[tuple[str, ...], Path, int | None]],
    source: Source,
    name: str = "",
) -> AnnotatedImage:
    """An image with (phrases, mask, value) of its objects.

    Masks of one phrase are joined; phrases of one mask are sentences of one object.
    """
    image_hw = _size_of(image, listed[0][1])
    joined: dict[str, list[tuple[Path, int | None]]] = {}
    for words, mask, value in listed:
        for phrase in words:
            joined.setdefault(phrase, []).append((mask, value))
    said: dict[tuple[tuple[Path, int | None], ...], list[str]] = {}
    for phrase, parts in joined.items():
        said.setdefault(tuple(dict.fromkeys(parts)), []).append(phrase)
    things = (
        GroundedObject(
            MaskFiles(image_hw, parts), tuple(phrases), split=source.split, name=str(index)
        )
        for index, (parts, phrases) in enumerate(said.items())
    )
    return AnnotatedImage(name or image.name, image, image_hw, tuple(things))


# --- folders of images and masks -----------------------------------------------------------------


def _folders(path: Path, split: str, names: Iterable[str]) -> list[Path]:
    """The folders of these names that are there, in the split's folder or with it in them."""
    subs = [sub for name in names for sub in (Path(split, name), Path(name, split))]
    return [path / sub for sub in dict.fromkeys(subs) if (path / sub).is_dir()]


def _pairs(source: Source, one_each: bool) -> Iterator[tuple[Path, list[Path]]]:
    """Images and their masks: with `one_each` those of a folder, else the label map."""
    path, split = source.path, source.split
    places = source.image_folders(_folders(path, split, IMAGE_FOLDERS))[:1]
    beside = _folders(path, split, MASK_FOLDERS)
    for image in sorted(file for place in places for file in _image_files(place)):
        if one_each:
            masks = [mask for folder in beside for mask in _image_files(folder / image.stem)]
        else:
            masks = [
                folder / f"{pattern.format(image.stem)}{ending}"
                for folder in beside
                for pattern in MASK_NAMES
                for ending in (".png", ".bmp", ".tif", ".tiff")
            ]
            masks = [mask for mask in masks if mask != image and mask.is_file()]
        if masks:
            yield image, masks


def _image_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.glob("*") if file.suffix.lower() in IMAGE_ENDINGS)


def _label_map(
    image: Path, path: Path, names: ClassNames, source: Source, findings: Findings
) -> AnnotatedImage:
    mask, image_hw = open_mask(path), _size_of(image, path)
    by_color = not names.numbers or (bool(names.colors) and mask.mode.startswith("RGB"))
    values = colors_of(mask) if by_color else values_of(mask, path)
    known = names.colors if by_color else names.numbers
    things = class_objects(values, known, str(path), findings, split=source.split)
    return AnnotatedImage(image.name, image, image_hw, things)
