from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.errors import DataError
from tests.data.conftest import read


def square(left: int, top: int, side: int = 2) -> list[list[int]]:
    right, bottom = left + side, top + side
    return [[left, top, right, top, right, bottom, left, bottom]]


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "instances.json"
        self.data: dict[str, Any] = {
            "images": [
                {"id": 1, "file_name": "a.png", "width": 10, "height": 8},
                {"id": 2, "file_name": "b.png", "width": 10, "height": 8},
            ],
            "annotations": [
                {"id": 1, "image_id": 1, "category_id": 7, "segmentation": square(0, 0)},
                {
                    "id": 2,
                    "image_id": 1,
                    "category_id": 7,
                    "segmentation": square(4, 4),
                    "phrases": ["the left mug", "a mug "],
                },
                {"id": 3, "image_id": 1, "category_id": 7, "segmentation": square(6, 0)},
                {"id": 4, "image_id": 1, "segmentation": square(0, 4), "caption": "a red spoon"},
            ],
            "categories": [{"id": 7, "name": "mug"}],
        }

    def save(self) -> Path:
        (self.folder / "images").mkdir(parents=True, exist_ok=True)
        for name in ("a.png", "b.png"):
            Image.new("RGB", (10, 8)).save(self.folder / "images" / name)
        self.path.write_text(json.dumps(self.data))
        return self.path

    def fails(self) -> str:
        with pytest.raises(DataError) as caught:
            read(f"coco:{self.save()}")
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_words_of_their_own_and_category_names(files: Files) -> None:
    findings = Findings()
    files.path = files.folder / "annotations" / "mine.json"
    files.path.parent.mkdir()
    files.save()
    (image,) = read(f"coco:{files.folder}@mine", findings)
    assert [(t.sentences, t.category, t.split) for t in image.objects] == [
        (("the left mug", "a mug"), "mug", "mine"),
        (("a red spoon",), "", "mine"),
        (("mug",), "mug", "mine"),
    ]
    mugs = np.zeros((8, 10), dtype=bool)
    mugs[0:2, 0:2] = mugs[0:2, 6:8] = True
    np.testing.assert_array_equal(rle.decode(image.objects[2].read_mask()), mugs)
    assert [(s.name, s.reason) for s in findings.skipped] == [
        (f"image 2 in {files.path}", "it has no annotation")
    ]


@pytest.mark.parametrize(
    "name",
    ["val/instances.json", "val/_annotations.coco.json", "annotations/instances_val.json"],
)
def test_where_the_file_is(files: Files, tmp_path: Path, name: str) -> None:
    files.path = tmp_path / name
    files.path.parent.mkdir()
    path = files.save()
    assert len(read(f"coco:{tmp_path}@val")) == len(read(f"coco:{path}")) == 1
    with pytest.raises(DataError) as caught:
        read(f"coco:{tmp_path}@vol")
    assert str(caught.value) == (
        "The COCO annotation file of coco@vol is missing.\n"
        f"Looked for:\n  {tmp_path}/vol/instances.json\n  {tmp_path}/vol/_annotations.coco.json\n"
        f"  {tmp_path}/annotations/instances_vol.json\n  {tmp_path}/annotations/vol.json\n"
        "Give the path of the file itself, without '@' and a split."
    )


@pytest.mark.parametrize(
    ("number", "change", "message"),
    [
        (
            0,
            {"image_id": 5},
            (
                "The image_id 5 of annotation 1 in {path} is unknown.\n"
                "It is not among the 'images' of {path}.\n"
                "Use files of one release, unchanged."
            ),
        ),
        (
            0,
            {"category_id": None},
            (
                "Annotation 1 in {path} has nothing that names it.\n"
                "Give it a 'category_id', 'phrases' or a 'caption'."
            ),
        ),
        (
            1,
            {"phrases": ["a", ""]},
            (
                "Annotation 2 in {path} has ['a', ''] for 'phrases'.\n"
                "Expected a list of strings, at least one and none empty."
            ),
        ),
        (
            1,
            {"id": 1},
            (
                "The annotation id 1 occurs twice in {path}.\n"
                "Ids must be unique; get an unchanged copy of the file."
            ),
        ),
    ],
)
def test_what_is_wrong_with_an_annotation_is_named(
    files: Files, number: int, change: dict[str, Any], message: str
) -> None:
    files.data["annotations"][number] |= change
    assert files.fails() == message.format(path=files.path)


def test_a_missing_image(files: Files) -> None:
    files.data["images"][0]["file_name"] = "c.png"
    message = files.fails()
    assert message == (
        f"The image c.png of {files.path} is missing.\nLooked for c.png in:\n"
        f"  {files.folder}\n  {files.folder}/images\n"
        f"  {files.folder.parent}\n  {files.folder.parent}/images\n"
        "Put the images beside the file, or name their folder: --data coco:PATH,images=DIR."
    )
