"""Reading and writing of COCO's JSON files, for the formats that build on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_core.data import rle
from flmm_core.data.findings import DegenerateError, Findings
from flmm_core.data.formats.shared.degenerate import NO_PIXEL
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.formats.shared.outlines import outlines
from flmm_core.data.records import Record, expect, field, image_size, read_json, records_by_id
from flmm_core.data.sample import Mask
from flmm_core.errors import DataError


class CocoFile:
    """Images, annotations and categories of a JSON file by id; records are checked when used."""

    def __init__(self, path: Path, findings: Findings, annotation_id: str = "id") -> None:
        self.path = path
        data = expect(read_json(path), dict, str(path))

        def by_id(key: str, what: str, id_key: str = "id") -> dict[int, Record]:
            listed = field(data, key, list, f"the file {path}")
            return records_by_id(listed, what, str(path), findings, id_key)

        self.images = by_id("images", "image")
        self.annotations = by_id("annotations", "annotation", annotation_id)
        self.categories = by_id("categories", "category")

    def look_up(self, key: str, value: int, where: str) -> Record:
        """The record of an image_id, ann_id or category_id; `where` names the record with it."""
        listed = {"image_id": "images", "ann_id": "annotations", "category_id": "categories"}[key]
        records: dict[int, Record] = getattr(self, listed)
        if value not in records:
            raise DataError(
                f"The {key} {value} of {where} is unknown.",
                found=f"It is not among the '{listed}' of {self.path}.",
                repair="Use files of one release, unchanged.",
            )
        return records[value]

    def size(self, image_id: int) -> tuple[int, int]:
        """(H, W) of an image."""
        return image_size(self.images[image_id], f"image {image_id} in {self.path}")

    @property
    def file_names(self) -> list[str]:
        """The names of all images that have one."""
        names = (record.get("file_name") for record in self.images.values())
        return [name for name in names if isinstance(name, str)]

    def file_name(self, image_id: int) -> str:
        return field(self.images[image_id], "file_name", str, f"image {image_id} in {self.path}")

    def category_of(self, record: Record, where: str) -> tuple[Record, str]:
        """The category of an annotation or segment, and its name."""
        category_id = field(record, "category_id", int, where)
        category = self.look_up("category_id", category_id, where)
        return category, field(category, "name", str, f"category {category_id} in {self.path}")


class Instances(CocoFile):
    """instances.json: annotations with a mask each."""

    def image_of(self, ann_id: int, asker: str) -> int:
        """The image id of an annotation; `asker` names the record with the annotation's id."""
        annotation = self.look_up("ann_id", ann_id, asker)
        image_id = field(annotation, "image_id", int, self.name(ann_id))
        self.look_up("image_id", image_id, self.name(ann_id))
        return image_id

    def mask(self, ann_id: int) -> Mask:
        """The mask of an annotation, which has a pixel; DegenerateError otherwise."""
        annotation, where = self.annotations[ann_id], self.name(ann_id)
        height, width = self.size(annotation["image_id"])
        segmentation = annotation.get("segmentation")
        if segmentation is None or segmentation == []:
            box = "only a box" if annotation.get("bbox") else "no mask"
            raise DegenerateError(where, f"it has {box}")
        mask = rle.to_rle(segmentation, height, width, source=where)
        if not rle.area(mask):
            raise DegenerateError(where, NO_PIXEL)
        return mask

    def categories_by_image(self) -> dict[int, frozenset[str]]:
        """Per image id, the names of the categories that are annotated; nothing is checked."""
        found: dict[int, set[str]] = {}
        for annotation in self.annotations.values():
            image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
            if isinstance(image_id, int) and isinstance(category_id, int):
                name = self.categories.get(category_id, {}).get("name")
                found.setdefault(image_id, set()).add(str(name or ""))
        return {key: frozenset(names - {""}) for key, names in found.items()}

    def category(self, ann_id: int) -> str:
        """The name of an annotation's category, or "" if it has none."""
        annotation = self.annotations[ann_id]
        if annotation.get("category_id") is None:
            return ""
        return self.category_of(annotation, self.name(ann_id))[1]

    def name(self, ann_id: int) -> str:
        return f"annotation {ann_id} in {self.path}"


def coco_names(image_id: int) -> list[str]:
    """The names of an image in COCO 2014 and 2017."""
    return [f"COCO_train2014_{image_id:012d}.jpg", f"{image_id:012d}.jpg"]


class NewCocoFile:
    """The lists of a COCO JSON file while they are written."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        self._categories: dict[tuple[str, frozenset[tuple[str, int]]], int] = {}

    def content(self) -> dict[str, Any]:
        categories = [
            {"id": number, "name": name, "supercategory": name, **dict(more)}
            for (name, more), number in self._categories.items()
        ]
        return {"images": self.images, "annotations": self.annotations, "categories": categories}

    def add_image(
        self, new: NewImage, image_hw: tuple[int, int], folder: Path, image_id: int = 0
    ) -> None:
        """Save an image to `folder` and add it, by default with the next id."""
        new.save(folder / new.file_name)
        image_id, (height, width) = image_id or len(self.images) + 1, image_hw
        self.images.append(
            {"id": image_id, "file_name": new.file_name, "height": height, "width": width}
        )

    def category_id(self, name: str, **more: int) -> int:
        """The id of a category with `more` keys; the default name is "object"."""
        key = name or "object", frozenset(more.items())
        return self._categories.setdefault(key, len(self._categories) + 1)


class NewInstances(NewCocoFile):
    """The lists of an instances.json while they are written."""

    def content(self) -> dict[str, Any]:
        return {"info": {"description": "COCO format"}, **super().content()}

    def add(self, mask: Mask, category: str, **more: Any) -> int:
        """The id of a new annotation of the last image; `more` are further keys of it.

        Many readers know only a list for `segmentation`: of polygons, or of RLEs. An empty mask,
        which no polygon can be, is a list of one RLE.
        """
        ann_id = len(self.annotations) + 1
        self.annotations.append(
            {
                "id": ann_id,
                "image_id": self.images[-1]["id"],
                "category_id": self.category_id(category),
                "iscrowd": 0,
                "area": rle.area(mask),
                "bbox": list(rle.bbox(mask)),
                "segmentation": outlines(rle.decode(mask)) or [rle.to_json(mask)],
                **more,
            }
        )
        return ann_id
