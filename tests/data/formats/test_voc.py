from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.errors import DataError
from tests.data.conftest import read

MASK = np.zeros((10, 12), dtype=np.uint8)
MASK[1:5, 1:5] = 15
MASK[6:9, 2:9] = 11
MASK[0, :6] = 255
OBJECTS = np.where(MASK == 15, 2, np.where(MASK == 11, 1, MASK)).astype(np.uint8)
OBJECTS[2:4, 2:4] = 3
XML = "<annotation>{}</annotation>".format(
    "".join(f"<object><name>{n}</name></object>" for n in ("diningtable", "person", "cup"))
)


GRAY = [n for n in range(256) for _ in range(3)]


def voc_palette() -> list[int]:
    """The colors that the VOC development kit prints for 0 to 21 and 255."""
    first = """0 0 0 128 0 0 0 128 0 128 128 0 0 0 128 128 0 128 0 128 128 128 128 128 64 0 0 192 0
    0 64 128 0 192 128 0 64 0 128 192 0 128 64 128 128 192 128 128 0 64 0 128 64 0 0 192 0 128 192 0
    0 64 128"""
    return [int(n) for n in first.split()] + 3 * [1] * 234 + [224, 224, 192]


class Files:
    def __init__(self, root: Path) -> None:
        self.root = root
        for folder in ("JPEGImages", "Annotations", "ImageSets/Segmentation"):
            (root / folder).mkdir(parents=True)
        Image.new("RGB", (12, 10)).save(root / "JPEGImages" / "a.jpg")
        (root / "Annotations" / "a.xml").write_text(XML)
        (root / "ImageSets/Segmentation/val.txt").write_text("a\n")

    def save(self, kind: str, values: NDArray[Any], palette: list[int] | None) -> None:
        image = Image.fromarray(values)
        if palette:
            image = image.convert("P")
            image.putdata(values.ravel().tolist())
            image.putpalette(palette)
        (self.root / kind).mkdir(exist_ok=True)
        image.save(self.root / kind / "a.png")


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "VOCdevkit" / "VOC2012")


def check(root: Path, expected: dict[str, NDArray[Any]], split: str = "@val") -> None:
    (image,) = read(f"voc:{root}{split}")
    assert {thing.sentences[0] for thing in image.objects} == set(expected)
    for thing in image.objects:
        inside = expected[thing.sentences[0]]
        np.testing.assert_array_equal(rle.decode(thing.read_mask()), inside)
        assert thing.ignore is not None
        np.testing.assert_array_equal(rle.decode(thing.ignore), MASK == 255)


@pytest.mark.parametrize("palette", [voc_palette(), None, GRAY])
def test_classes_by_color_or_by_number(files: Files, palette: list[int] | None) -> None:
    files.save("SegmentationClass", MASK, palette)
    expected = {"person": MASK == 15, "dining table": MASK == 11}
    check(files.root, expected)
    check(files.root.parent.parent, expected)
    check(files.root.parent, expected, split="")


def test_objects_are_named_by_their_order_in_the_annotations(files: Files) -> None:
    files.save("SegmentationObject", OBJECTS, None)
    expected = {name: n == OBJECTS for n, name in ((1, "dining table"), (2, "person"), (3, "cup"))}
    check(files.root, expected)


@pytest.mark.parametrize("stored", ["colors", "palette", "numbers"])
def test_own_classes_of_a_label_map(files: Files, stored: str) -> None:
    (files.root / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\nred_mug:5,6,7::\nspoon:9,9,200::\n"
    )
    numbers = np.where(MASK == 15, 1, np.where(MASK == 11, 2, MASK)).astype(np.uint8)
    colors = np.array([[0, 0, 0], [5, 6, 7], [9, 9, 200], *[[224, 224, 192]] * 253], np.uint8)
    values = colors[numbers] if stored == "colors" else numbers
    palette = colors.ravel().tolist() if stored == "palette" else None
    files.save("SegmentationClass", values, palette)
    check(files.root, {"red mug": MASK == 15, "spoon": MASK == 11})


def test_a_value_without_a_name_is_left_out(files: Files) -> None:
    files.save("SegmentationClass", np.where(MASK == 15, 77, MASK).astype(np.uint8), None)
    findings = Findings()
    (image,) = read(f"voc:{files.root}@val", findings)
    assert [thing.category for thing in image.objects] == ["diningtable"]
    file = files.root / "SegmentationClass" / "a.png"
    assert [(s.name, s.reason) for s in findings.skipped] == [
        (f"the value 77 of {file}", "it has no name")
    ]


def test_an_image_of_background_only(files: Files) -> None:
    files.save("SegmentationClass", MASK * 0, None)
    findings = Findings()
    with pytest.raises(DataError, match="is empty"):
        read(f"voc:{files.root}@val", findings)
    assert [item.counts for item in findings.skipped] == [False]


@pytest.mark.parametrize(
    ("name", "content", "split", "message"),
    [
        ("SegmentationClass/a.png", "x", "@val", "is not an image, or is broken."),
        ("JPEGImages/a.jpg", None, "@val", "The image a of {root} is missing."),
        ("labelmap.txt", "mug:1,2", "@val", "Line 1 of {root}/labelmap.txt is not a class."),
        ("Annotations/a.xml", "<a>", "@val", "The file {root}/Annotations/a.xml is not XML."),
        ("JPEGImages/b.jpg", "", "@vul", "There is no split 'vul' in {root}. Did you mean 'val'?"),
    ],
)
def test_what_is_wrong_is_named(
    files: Files, name: str, content: str | None, split: str, message: str
) -> None:
    files.save("SegmentationClass" if "xml" not in name else "SegmentationObject", MASK, None)
    path = files.root / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(DataError) as caught:
        read(f"voc:{files.root}{split}")
    assert message.format(root=files.root) in str(caught.value)


def test_a_folder_without_masks(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no Pascal VOC segmentation in"):
        read(f"voc:{tmp_path}@val")
