"""Small data sets on disk, shared by the tests of the readers."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.sample import AnnotatedImage, GroundedObject
from flmm_core.data.sources import read_source


def read(text: str, findings: Findings | None = None) -> tuple[AnnotatedImage, ...]:
    """The images of a source."""
    return tuple(read_source(text, findings)[1])


class Distributed:
    """A RefCOCO folder as it is distributed: Python 2 strings, COCO names, polygons and crowds.

    Tests change `instances` and `refs`, then `save`.
    """

    def __init__(self, root: Path, dataset: str = "refcoco", maker: str = "unc") -> None:
        self.root = root
        self.folder = root / dataset
        self.refs_path = self.folder / f"refs({maker}).p"
        self.instances_path = self.folder / "instances.json"
        self.images = root / "train2014"
        self.instances: dict[str, Any] = {
            "info": {"description": "COCO 2014"},
            "images": [self._image(9, 60, 40), self._image(25, 30, 50)],
            "annotations": [
                # Two parts, as of an object behind a post.
                self._annotation(
                    101, 9, 18, [[2, 3, 12, 3, 12, 9, 2, 9], [20, 3, 25, 3, 25, 9, 20, 9]]
                ),
                self._annotation(102, 9, 17, [[30.0, 10.0, 60.0, 10.0, 60.0, 40.0, 30.0, 40.0]]),
                # A crowd: uncompressed, counted down the columns of 50 x 30.
                self._annotation(
                    103, 25, 1, {"size": [50, 30], "counts": [100, 25, 25, 25, 1325]}, iscrowd=1
                ),
                # Not referred to by anyone, and broken: nobody's business.
                self._annotation(999, 9, 18, [[1, 2, 3, 4]]),
            ],
            "categories": [
                {"id": 1, "name": "person", "supercategory": "person"},
                {"id": 17, "name": "cat", "supercategory": "animal"},
                {"id": 18, "name": "dog", "supercategory": "animal"},
            ],
        }
        self.refs: list[dict[str, Any]] = [
            self._ref(0, 101, 9, "val", ["Left dog!", "the dog on the left"]),
            self._ref(1, 103, 25, "val", ["people"]),
            self._ref(2, 102, 9, "val", ["a cat"]),
            self._ref(3, 102, 9, "testA", ["the cat"]),
        ]

    @staticmethod
    def _image(image_id: int, width: int, height: int) -> dict[str, Any]:
        name = f"COCO_train2014_{image_id:012d}.jpg"
        return {"id": image_id, "file_name": name, "width": width, "height": height, "license": 1}

    @staticmethod
    def _annotation(
        ann_id: int, image_id: int, category_id: int, segmentation: Any, iscrowd: int = 0
    ) -> dict[str, Any]:
        return {
            "id": ann_id,
            "image_id": image_id,
            "category_id": category_id,
            "segmentation": segmentation,
            "iscrowd": iscrowd,
            "bbox": [0, 0, 1, 1],
            "area": 1.5,
        }

    @staticmethod
    def _ref(ref_id: int, ann_id: int, image_id: int, split: str, said: list[str]) -> Any:
        sentences = []
        for number, raw in enumerate(said):
            sent = raw.lower().replace("!", "")
            sentences.append(
                {"sent_id": 10 * ref_id + number, "raw": raw, "sent": sent, "tokens": sent.split()}
            )
        return {
            "ref_id": ref_id,
            "ann_id": ann_id,
            "image_id": image_id,
            "category_id": 1,
            "split": split,
            "file_name": f"COCO_train2014_{image_id:012d}_{ref_id}.jpg",
            "sent_ids": [s["sent_id"] for s in sentences],
            "sentences": sentences,
        }

    def save(self, *, images: bool = True) -> Distributed:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.instances_path.write_text(json.dumps(self.instances))
        self.refs_path.write_bytes(b"".join(python2_pickle(self.refs)) + b".")
        if images:
            self.images.mkdir(parents=True, exist_ok=True)
            for image in self.instances["images"]:
                size = (image["width"], image["height"])
                Image.new("RGB", size, "grey").save(self.images / image["file_name"])
        return self

    def save_refs(self, refs: Any, protocol: int = 2) -> Distributed:
        self.save()
        self.refs_path.write_bytes(pickle.dumps(refs, protocol))
        return self


def python2_pickle(value: Any) -> list[bytes]:
    """Protocol 0 as Python 2 wrote it, with byte strings (opcode S)."""
    if isinstance(value, str):
        body = "".join(
            chr(byte) if 32 <= byte < 127 and byte not in b"\\'" else f"\\x{byte:02x}"
            for byte in value.encode()
        )
        return [f"S'{body}'\n".encode()]
    if isinstance(value, int):
        return [f"I{value}\n".encode()]
    if isinstance(value, list):
        return [b"(l", *(part for item in value for part in [*python2_pickle(item), b"a"])]
    parts = [b"(d"]
    for key, item in value.items():
        parts += [*python2_pickle(key), *python2_pickle(item), b"s"]
    return parts


@pytest.fixture
def distributed(tmp_path: Path) -> Distributed:
    return Distributed(tmp_path / "coco")


@pytest.fixture
def make_distributed(tmp_path: Path) -> Callable[..., Distributed]:
    def make(dataset: str, maker: str) -> Distributed:
        return Distributed(tmp_path / "coco", dataset, maker)

    return make


def drawn_object(
    height: int, width: int, box: tuple[int, int, int, int], *sentences: str, **more: str
) -> GroundedObject:
    mask = np.zeros((height, width), dtype=bool)
    mask[box[0] : box[2], box[1] : box[3]] = True
    return GroundedObject(rle.encode(mask), sentences, **more)


@pytest.fixture
def drawn_images() -> list[NewImage]:
    """Three images in two splits, with slices, as a drawer of scenes hands them over."""
    first = [
        drawn_object(20, 30, (2, 3, 8, 9), "the red square", "left square", category="square"),
        drawn_object(20, 30, (10, 20, 20, 30), "a ring", category="ring", slice="relation"),
    ]
    second = [drawn_object(24, 16, (0, 0, 24, 16), "everything", split="val", slice="plain")]
    third = [drawn_object(24, 16, (5, 5, 6, 6), "ein kleiner Käfer", split="train")]
    return [
        NewImage(Image.new("RGB", (30, 20), "red"), "1.png", first),
        NewImage(Image.new("RGB", (16, 24), "blue"), "2.png", second),
        NewImage(Image.new("RGB", (16, 24), "green"), "3.png", third),
    ]
