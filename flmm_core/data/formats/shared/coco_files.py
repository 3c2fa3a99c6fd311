"""COCO's instances.json, and where COCO's images lie: what several readers share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.fields import field, image_size, mapping
from flmm_core.data.formats.shared.json_files import is_file, read_json
from flmm_core.data.sample import Mask
from flmm_core.errors import DataError

PICTURE_FOLDERS = (
    "train2014",
    "images/train2014",
    "images/mscoco/images/train2014",
    "coco/train2014",
    "images",
    "train2017",
    "images/train2017",
    "",
)
"""Where the images of RefCOCO and its like may lie, below a folder."""


class Instances:
    """instances.json by id, checked where it is used.

    Args:
        path: The file.
        findings: Takes ids that stand twice; the first one counts then.

    Raises:
        DataError: The file is missing, broken or has no such lists.
    """

    def __init__(self, path: Path, findings: Findings) -> None:
        self.path = path
        data = mapping(read_json(path), str(path))
        self._images = records_by_id(data, "images", "picture", path, findings)
        self._annotations = records_by_id(data, "annotations", "annotation", path, findings)
        self._categories = records_by_id(data, "categories", "category", path, findings)

    @property
    def annotations(self) -> Mapping[int, dict[Any, Any]]:
        """All annotations by their ids."""
        return self._annotations

    @property
    def image_ids(self) -> Sequence[int]:
        """The ids of all images."""
        return tuple(self._images)

    def image_of(self, ann_id: int, asker: str) -> int:
        """The image id of an annotation, which has an image."""
        if ann_id not in self._annotations:
            raise DataError(
                f"Annotation {ann_id} is not in {self.path}.",
                found=f"It is the ann_id of {asker}.",
                repair="Use refs and instances of one release.",
            )
        image_id = field(self._annotations[ann_id], "image_id", int, self.name(ann_id))
        if image_id not in self._images:
            raise DataError(
                f"Annotation {ann_id} in {self.path} has no image.",
                found=f"Its image_id is {image_id}, which is not among the file's 'images'.",
                repair="Get an unchanged copy of the file.",
            )
        return image_id

    def has_image(self, image_id: int) -> bool:
        """Whether the file lists that image."""
        return image_id in self._images

    def mask(self, ann_id: int) -> Mask:
        """An annotation's mask, checked against its image's size."""
        annotation = self._annotations[ann_id]
        segmentation = field(annotation, "segmentation", object, self.name(ann_id))
        height, width = self.size(annotation["image_id"])
        return rle.to_rle(segmentation, height, width, source=self.name(ann_id))

    def category(self, ann_id: int) -> str:
        """The name of an annotation's category, or "" if it has none."""
        if self._annotations[ann_id].get("category_id") is None:
            return ""
        category_id = field(self._annotations[ann_id], "category_id", int, self.name(ann_id))
        if category_id not in self._categories:
            raise DataError(
                f"Annotation {ann_id} in {self.path} has no category.",
                found=f"Its category_id is {category_id}, which is not among the file's "
                "'categories'.",
            )
        where = f"category {category_id} in {self.path}"
        return field(self._categories[category_id], "name", str, where)

    def size(self, image_id: int) -> tuple[int, int]:
        """(H, W) of an image."""
        return image_size(self._images[image_id], f"image {image_id} in {self.path}")

    def file_name(self, image_id: int) -> str:
        """An image's file, as the file calls it."""
        where = f"image {image_id} in {self.path}"
        return field(self._images[image_id], "file_name", str, where)

    def name(self, ann_id: int) -> str:
        """What to call an annotation in messages."""
        return f"annotation {ann_id} in {self.path}"


def records_by_id(
    data: Mapping[Any, Any], key: str, what: str, path: Path, findings: Findings, id_key: str = "id"
) -> dict[int, dict[Any, Any]]:
    """The records of a list by their ids; of one id the first.

    Args:
        data: Holds the list.
        key: Under which key.
        what: What a record is called in messages.
        path: The file, for messages.
        findings: Takes records without an id and ids that stand twice.
        id_key: The key of the id.
    """
    found: dict[int, dict[Any, Any]] = {}
    for number, record in enumerate(field(data, key, list, f"the file {path}")):
        with findings.part():
            where = f"{what} number {number} of {path}"
            its_id = field(mapping(record, where), id_key, int, where)
            if its_id in found:
                raise DataError(
                    f"The {what} {id_key} {its_id} stands twice in {path}.",
                    repair="Ids must be unique; get an unchanged copy of the file.",
                )
            found[its_id] = record
    return found


def coco_names(file_name: str, image_id: int) -> list[str]:
    """What an image may be called: as the file says, and as COCO 2014 and 2017 call it."""
    names = [file_name, f"COCO_train2014_{image_id:012d}.jpg", f"{image_id:012d}.jpg"]
    return list(dict.fromkeys(names))


def find_train2014(
    folder: Path, instances: Instances, image_ids: Sequence[int], findings: Findings
) -> dict[int, Path]:
    """Where each image of RefCOCO and its like lies.

    Raises:
        DataError: Some are missing; every path that was tried for the first is listed.
    """
    roots = [root / sub for sub in PICTURE_FOLDERS for root in (folder.parent, folder)]
    there = [root for root in roots if root.is_dir()]
    found: dict[int, Path] = {}
    missing: dict[str, list[str]] = {}
    for image_id in image_ids:
        with findings.part():
            file_name = instances.file_name(image_id)
            names = coco_names(file_name, image_id)
            path = first_file(there, names)
            if path is None:
                missing[file_name] = names
            else:
                found[image_id] = path
    for number, (file_name, names) in enumerate(missing.items()):
        with findings.part():
            if number:  # what was tried is told once
                raise DataError(f"The image {file_name} of {instances.path} is missing.")
            tried = [root / name for root in roots for name in names]
            raise DataError(
                f"The image {file_name} of {instances.path} is missing, "
                f"one of {len(missing)} of {len(image_ids)}.",
                found="Looked for:\n" + "\n".join(f"  {path}" for path in tried),
                repair="Put COCO's train2014 images "
                "(http://images.cocodataset.org/zips/train2014.zip) into one of these folders.",
            )
    return found


def first_file(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The first of the names that is a file in one of the folders."""
    for path in (folder / name for folder in folders for name in names):
        if is_file(path):
            return path
    return None
