"""Writes COCO's instances.json and RefCOCO's refs, for the writers of several formats."""

from __future__ import annotations

from typing import Any

from flmm_core.data import rle
from flmm_core.data.sample import GroundedObject, Mask


class CocoBook:
    """The lists of an instances.json, and refs to them, while they are written."""

    def __init__(self) -> None:
        self._images: list[dict[str, Any]] = []
        self._annotations: list[dict[str, Any]] = []
        self._categories: dict[str, int] = {}
        self._refs = 0
        self._sentences = 0

    @property
    def instances(self) -> dict[str, Any]:
        """The whole file."""
        return {
            "info": {"description": "COCO format"},
            "images": self._images,
            "annotations": self._annotations,
            "categories": [
                {"id": i, "name": n, "supercategory": n} for n, i in self._categories.items()
            ],
        }

    def add_image(self, file_name: str, size: tuple[int, int]) -> int:
        """The new image's id."""
        height, width = size
        image_id = len(self._images) + 1
        self._images.append(
            {"id": image_id, "file_name": str(file_name), "height": height, "width": width}
        )
        return image_id

    def category_id(self, name: str) -> int:
        """The id of a category; an object without one is an "object"."""
        return self._categories.setdefault(name or "object", len(self._categories) + 1)

    def add(self, mask: Mask, image_id: int, category: str, **more: Any) -> int:
        """The new annotation's id; `more` are further keys of it."""
        height, width = mask["size"]
        ann_id = len(self._annotations) + 1
        self._annotations.append(
            {
                "id": ann_id,
                "image_id": image_id,
                "category_id": self.category_id(category),
                "iscrowd": 0,
                "area": rle.area(mask),
                "bbox": list(rle.bbox(mask)),
                "segmentation": {
                    "size": [int(height), int(width)],
                    "counts": mask["counts"].decode(),
                },
                **more,
            }
        )
        return ann_id

    def ref(
        self, thing: GroundedObject, file_name: str, image_id: int, ann_id: Any, category_id: Any
    ) -> dict[str, Any]:
        """A new ref to an annotation, or in gRefCOCO to a list of them."""
        self._refs += 1
        first = self._sentences
        self._sentences += len(thing.sentences)
        sentence_ids = list(range(first, self._sentences))
        return {
            "ref_id": self._refs,
            "ann_id": ann_id,
            "image_id": image_id,
            "category_id": category_id,
            "file_name": str(file_name),
            "split": str(thing.split or "train"),
            "slice": str(thing.slice),
            "sent_ids": sentence_ids,
            "sentences": [
                {"sent_id": i, "sent": str(s), "raw": str(s), "tokens": str(s).split()}
                for i, s in zip(sentence_ids, thing.sentences, strict=True)
            ],
        }
