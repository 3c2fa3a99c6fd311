from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.errors import DataError
from tests.data.conftest import read

NAMES = {0: "traffic_light", 1: "mug"}
SQUARE = "0.25 0.2 0.5 0.2 0.5 0.6 0.25 0.6"


class Files:
    """Two splits: "train" with one image of 12 x 10 pixels (width x height), "val" with none."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.yaml = "train: images/train\nval: images/val\nnames: {0: traffic_light, 1: mug}\n"
        self.labels = f"0 {SQUARE}\n"

    def save(self, images: str = "images/train", labels: str = "labels/train") -> Path:
        for folder in (images, labels, "images/val"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10)).save(self.root / images / "a.jpg")
        (self.root / labels / "a.txt").write_text(self.labels)
        if self.yaml:
            (self.root / "data.yaml").write_text(self.yaml)
        return self.root

    def fails(self, split: str = "@train") -> str:
        with pytest.raises(DataError) as caught:
            read(f"yolo:{self.save()}{split}")
        return str(caught.value)

    def left_out(self) -> list[str]:
        findings = Findings()
        self.labels += f"1 {SQUARE}\n"
        assert len(read(f"yolo:{self.save()}@train", findings)[0].objects) == 1
        return [item.reason for item in findings.skipped]


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "set")


def test_masks_have_the_pixels_of_ultralytics(files: Files) -> None:
    """Points times the size in single precision, cut to whole pixels, `cv2.fillPoly`."""
    rng = np.random.default_rng(4)
    expected = {name: np.zeros((10, 12), dtype=np.uint8) for name in NAMES.values()}
    files.labels = ""
    for number, count in enumerate([3, 5, 9, 30, 4]):
        points = rng.random((count, 2)).round(2)
        line = " ".join(str(n) for n in points.ravel())
        files.labels += f"{number % 2} {line}\n"
        scaled = points.astype(np.float32) * np.float32([12, 10])
        cv2.fillPoly(expected[NAMES[number % 2]], [scaled.astype(np.int32)], 1)
    (image,) = read(f"yolo:{files.save()}@train")
    assert [thing.category for thing in image.objects] == ["traffic_light", "mug"]
    assert [thing.sentences for thing in image.objects] == [("traffic light",), ("mug",)]
    for thing in image.objects:
        mask = rle.decode(thing.read_mask())
        np.testing.assert_array_equal(mask, expected[thing.category])


def test_a_coordinate_is_a_single_precision_number(files: Files) -> None:
    files.labels = "1 0.29 0 0.29 1 0.3 1 0.3 0"
    files.save()
    Image.new("RGB", (100, 10)).save(files.root / "images/train/a.jpg")
    (image,) = read(f"yolo:{files.root}@train")
    assert rle.bbox(image.objects[0].read_mask())[:3] == (29, 0, 2)


@pytest.mark.parametrize(
    ("yaml", "images", "labels"),
    [
        ("train: ../train/images\nnames: [traffic_light, mug]", "train/images", "train/labels"),
        ("path: .\ntrain: [images/train]\nnames: {0: traffic_light}", "", ""),
        ("path: /nowhere\ntrain: images/train\nnames: [traffic_light]", "", ""),
        ("train: list.txt\nnames: [traffic_light]", "", ""),
        ("train: photos\nnames: [traffic_light]", "photos", "photos"),
    ],
)
def test_layouts_that_tools_export(files: Files, yaml: str, images: str, labels: str) -> None:
    files.yaml = yaml
    files.root.mkdir()
    (files.root / "list.txt").write_text("./images/train/a.jpg\n")
    files.save(images or "images/train", labels or "labels/train")
    (image,) = read(f"yolo:{files.root}@train")
    assert image.objects[0].sentences == ("traffic light",)
    assert rle.area(image.objects[0].read_mask()) == 20
    assert read(f"yolo:{files.root / 'data.yaml'}@train") == (image,)


def test_an_export_without_splits(files: Files) -> None:
    files.yaml = ""
    (files.save("images", "labels") / "classes.txt").write_text("\ufefftraffic_light\nmug\n")
    (image,) = read(f"yolo:{files.root}")
    assert (image.file_name, image.objects[0].category) == ("images/a.jpg", "traffic_light")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("0 0.5 0.5 0.2 0.2", "it is a box, and has no mask"),
        ("0 0.5 0.5", "it needs 3 points and has 1"),
    ],
)
def test_a_line_without_a_mask_is_left_out(files: Files, line: str, reason: str) -> None:
    files.labels = f"{line}\n"
    assert files.left_out() == [reason]


def test_an_image_without_labels_loses_nothing(files: Files) -> None:
    files.save()
    Image.new("RGB", (12, 10)).save(files.root / "images/train/b.jpg")
    findings = Findings()
    assert len(read(f"yolo:{files.root}@train", findings)) == 1
    assert [item.counts for item in findings.skipped] == [False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"labels": f"2 {SQUARE}"},
            "has the class 2, which has no name.\n{root}/data.yaml names",
        ),
        ({"labels": "0 1 2 3 x"}, "is not a list of numbers.\nIt is '0 1 2 3 x'."),
        ({"labels": "0 12 10 5 5 3 3"}, "is not a polygon.\nExpected a class and an even number"),
        ({"labels": "0 nan 0 0 1 1 1"}, "is not a polygon."),
        ({"labels": "nan 0 0 0 1 1 1"}, "has the class nan, which has no name."),
        ({"yaml": "train: images/train\nnames: 2"}, "The 'names' of {root}/data.yaml are 2."),
        (
            {"yaml": "train: gone\nnames: [a]"},
            "The images of the split 'train' of {root}",
        ),
        ({"yaml": f"train: {'a' * 400}\nnames: [a]"}, "The images of the split 'train' of"),
        ({"yaml": "train: [}"}, "The file {root}/data.yaml is not YAML."),
        ({"yaml": "names: [a]"}, "There is no split 'train' in {root}/data.yaml."),
    ],
)
def test_what_is_wrong_is_named(files: Files, change: dict[str, Any], message: str) -> None:
    vars(files).update(change)
    assert message.format(root=files.root) in files.fails()


def test_a_split_has_to_be_named(files: Files) -> None:
    assert files.fails("") == (
        f"The data set {files.root}/data.yaml has splits, and none is named.\n"
        "Its splits: train, val.\nName one of them after the '@'."
    )
