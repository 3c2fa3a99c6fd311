from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.errors import DataError
from tests.data.conftest import read
from tests.data.formats.shared.test_brush_rle import encode

ALPHA = np.zeros((10, 20), dtype=np.uint8)
ALPHA[2:6, 3:9], ALPHA[6, 3:9] = 255, 40
BOX = {"x": 10, "y": 20, "width": 30, "height": 50, "rotation": 0}


def result(kind: str, label: str = "", region: str = "", **value: Any) -> dict[str, Any]:
    labels = {kind: [label]} if label else {}
    return {
        "id": region or f"{kind}{label}",
        "type": kind,
        "from_name": "tag",
        "to_name": "image",
        "original_width": 20,
        "original_height": 10,
        "image_rotation": 0,
        "value": {**value, **labels},
    }


def brush(label: str, alpha: NDArray[Any] = ALPHA) -> dict[str, Any]:
    return result("brushlabels", label, format="rle", rle=list(encode(alpha, [3, 4, 8, 16])))


class Files:
    def __init__(self, root: Path) -> None:
        self.root, self.file = root, root / "project-1.json"
        self.image = "/data/upload/1/0a1b2c3d-my%20mug.jpg"
        self.results: list[dict[str, Any]] = [brush("red_mug")]
        self.stored = "my mug.jpg"

    @property
    def tasks(self) -> list[Any]:
        one = {"id": 7, "result": self.results, "was_cancelled": False}
        return [{"id": 1, "data": {"image": self.image}, "annotations": [one], "predictions": []}]

    def save(self, tasks: Any = None) -> str:
        (self.root / self.stored).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 10)).save(self.root / self.stored)
        self.file.write_text(json.dumps(tasks or self.tasks))
        return f"labelstudio:{self.root}"

    def masks(self, findings: Findings | None = None) -> dict[str, NDArray[Any]]:
        (image,) = read(self.save(), findings)
        return {
            words: rle.decode(thing.read_mask())
            for thing in image.objects
            for words in thing.sentences
        }


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "set")


def polygon_mask(points: list[tuple[float, float]]) -> NDArray[Any]:
    """Points in pixels, as pycocotools fills them."""
    (code,) = coco.frPyObjects([[n for point in points for n in point]], 10, 20)
    return np.asarray(coco.decode(code), dtype=bool)


def test_a_brush_is_what_is_not_transparent(files: Files) -> None:
    np.testing.assert_array_equal(files.masks()["red mug"], ALPHA > 0)


def test_polygons_and_rectangles_are_filled_as_coco_fills_them(files: Files) -> None:
    points = [[10, 5], [90.5, 11], [60, 93], [13, 70]]
    turned = BOX | {"rotation": 30}
    files.results = [
        result("polygonlabels", "mug", points=points, closed=True),
        result("rectanglelabels", "box", **BOX),
        result("rectanglelabels", "turned", **turned),
    ]
    found = files.masks()
    expected = polygon_mask([(x / 5, y / 10) for x, y in points])
    np.testing.assert_array_equal(found["mug"], expected)
    assert found["box"].sum() == found["box"][2:7, 2:8].sum() == 30
    # The corners that Label Studio's own converter gives, which turn around the top left one.
    sine, cosine = 0.5, 3**0.5 / 2
    corners = [(2.0, 2.0), (2 + 6 * cosine, 2 + 6 * sine)]
    corners += [(x - 5 * sine, y + 5 * cosine) for x, y in corners[::-1]]
    np.testing.assert_array_equal(found["turned"], polygon_mask(corners))


@pytest.mark.parametrize("degrees", [0, 35])
def test_an_ellipse_is_nearly_its_polygon(files: Files, degrees: float) -> None:
    value = {"x": 50, "y": 50, "radiusX": 40, "radiusY": 30, "rotation": degrees}
    files.results = [result("ellipselabels", "plate", **value)]
    angles = np.radians(np.arange(0, 360, 2))
    turn = np.exp(1j * np.radians(degrees))
    border = 10 + 5j + (8 * np.cos(angles) + 3j * np.sin(angles)) * turn
    expected = polygon_mask([(float(p.real), float(p.imag)) for p in border])
    found = files.masks()["plate"]
    assert (found & expected).sum() / (found | expected).sum() > 0.93
    assert abs(int(found.sum()) - np.pi * 8 * 3) < 4


def test_regions_of_a_label_are_joined_and_texts_name_one(files: Files) -> None:
    mug = result("polygonlabels", "mug", "p1", points=[[0, 0], [20, 0], [20, 40], [0, 40]])
    other = result("polygonlabels", "mug", "p2", points=[[50, 0], [70, 0], [70, 40], [50, 40]])
    files.results = [
        mug,
        other,
        result("rectangle", "", "r1", **BOX),
        result("labels", "box", "r1", **BOX),
        result("brushlabels", "mug", "b1", format="rle", rle=brush("")["value"]["rle"]),
        result("textarea", "", "b1", text=["the mug behind", "a red mug"]),
        result("rectanglelabels", "ignore", "i1", **BOX),
        result("choices", "", "c1", choices=["indoors"]),
    ]
    (image,) = read(files.save())
    words = [thing.sentences for thing in image.objects]
    assert words == [("mug",), ("box",), ("the mug behind", "a red mug")]
    assert [thing.category for thing in image.objects] == ["mug", "box", "mug"]
    assert rle.area(image.objects[0].read_mask()) == 32
    assert [thing.ignore and rle.area(thing.ignore) for thing in image.objects] == [26, None, 5]


def test_json_min(files: Files) -> None:
    flat = [{**one.pop("value"), **one} for one in files.results]
    for one in flat:
        del one["type"]
    tasks = [{"image": files.image, "id": 1, "tag": flat, "annotator": 1, "lead_time": 3.1}]
    (image,) = read(files.save(tasks))
    np.testing.assert_array_equal(rle.decode(image.objects[0].read_mask()), ALPHA > 0)


@pytest.mark.parametrize(
    ("written", "stored"),
    [
        ("/data/upload/1/0a1b2c3d-a.jpg", "images/0a1b2c3d-a.jpg"),
        ("/data/local-files/?d=photos/a%20b.jpg", "photos/a b.jpg"),
        ("s3://bucket/photos/a.jpg", "photos/a.jpg"),
        ("https://host/a.jpg?X-Amz-Signature=1", "a.jpg"),
    ],
)
def test_images_where_label_studio_had_them(files: Files, written: str, stored: str) -> None:
    files.image, files.stored = written, stored
    (image,) = read(files.save())
    assert image.path == files.root / stored


def test_the_annotation_that_counts(files: Files) -> None:
    (task,) = files.tasks
    other = [brush("spoon", ALPHA // 255 * 255)]
    skipped = {"result": [brush("fork")], "was_cancelled": True}
    task["annotations"] = [skipped, *task["annotations"], {"result": other, "ground_truth": True}]
    (image,) = read(files.save([task]))
    assert [thing.category for thing in image.objects] == ["spoon"]


def test_splits_are_files_or_folders(files: Files) -> None:
    files.save()
    files.file.rename(files.root / "val.json")
    (image,) = read(f"labelstudio:{files.root}@val")
    assert {thing.split for thing in image.objects} == {"val"}
    with pytest.raises(DataError, match="There is no Label Studio export in"):
        read(f"labelstudio:{files.root}@test")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (result("keypointlabels", "a", x=1, y=2), "a keypoint has no area"),
        (brush("") | {"type": "brush"}, "it has no label"),
        (brush("a", ALPHA * 0), "it covers no pixel"),
        (result("ellipselabels", "a", x=1, y=2, radiusX=0, radiusY=0), "it covers no pixel"),
        (
            result("rectanglelabels", "a", **BOX) | {"image_rotation": 90},
            "it was drawn on the image turned by 90°",
        ),
    ],
)
def test_what_marks_nothing_is_left_out(files: Files, bad: dict[str, Any], reason: str) -> None:
    files.results.append(bad)
    findings = Findings()
    assert list(files.masks(findings)) == ["red mug"]
    assert [item.reason for item in findings.skipped] == [reason]


def test_a_task_that_is_not_annotated(files: Files) -> None:
    (task,) = files.tasks
    findings = Findings()
    read(files.save([task, {**task, "annotations": []}]), findings)
    assert [(s.reason, s.counts) for s in findings.skipped] == [("it is not annotated", False)]


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (brush("a", ALPHA[:5]), "It is of 100 pixels, the image has 200."),
        (result("brushlabels", "a", rle=[300]), "The brush of result 1 of task 0 of {file} cannot"),
        (result("brushlabels", "a", rle=["x"]), "The brush of result 1 of task 0 of {file} cannot"),
        (result("polygonlabels", "a", points=[[0, 0], [1e12, 0], [0, 1]]), "lies far outside"),
        (result("ellipselabels", "a", x=1, y=1, radiusX=1e300, radiusY=1), "lies far outside"),
        (result("polygonlabels", "a", points="x"), "has 'x' for 'points'.\nExpected a list."),
        (result("rectanglelabels", "a", x=1), "has None for 'y'."),
        (result("rectanglelabels", "a", **BOX | {"rotation": "x"}), "has 'x' for 'rotation'."),
    ],
)
def test_what_is_wrong_is_named(files: Files, bad: dict[str, Any], message: str) -> None:
    files.results.append(bad)
    with pytest.raises(DataError) as caught:
        read(files.save())
    assert message.format(file=files.file) in str(caught.value)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([{"data": {}}], "Task 0 of {file} has no image."),
        ([3], "Task 0 of {file} has no image."),
        (
            [{"data": {"image": "b.jpg"}, "annotations": 3}],
            "'annotations' of task 0 of {file} is",
        ),
        (
            [{"data": {"image": "b.jpg"}, "annotations": [{"result": [{}]}]}],
            "The image b.jpg of task 0 of {file} is missing.",
        ),
    ],
)
def test_what_is_wrong_with_a_task(files: Files, tasks: Any, message: str) -> None:
    with pytest.raises(DataError) as caught:
        read(files.save(tasks))
    assert message.format(file=files.file) in str(caught.value)
