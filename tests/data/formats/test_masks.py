from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.tools.check import check_source
from flmm_core.errors import DataError
from tests.data.conftest import read

LABELS = np.zeros((10, 12), dtype=np.uint8)
LABELS[1:5, 1:5], LABELS[6:9, 2:9], LABELS[0, :6] = 1, 2, 255
MUG, SPOON, VOID = LABELS == 1, LABELS == 2, LABELS == 255
COLORS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 7, 255), 255: (1, 1, 1)}


def save(path: Path, pixels: NDArray[Any] | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((10, 12, 3), np.uint8) if pixels is None else pixels).save(path)
    return path


def check(source: str, expected: dict[str, NDArray[Any]], void: NDArray[Any] | None = None) -> None:
    report = check_source(source)
    assert report.faults == report.skipped == ()
    (image,) = read(source)
    assert {thing.sentences[0]: 0 for thing in image.objects} == dict.fromkeys(expected, 0)
    for thing in image.objects:
        inside = expected[thing.sentences[0]]
        np.testing.assert_array_equal(rle.decode(thing.read_mask()), inside)
        if void is not None:
            assert thing.ignore is not None
            np.testing.assert_array_equal(rle.decode(thing.ignore), void)


def with_alpha(mask: NDArray[Any]) -> NDArray[Any]:
    return np.dstack([np.full((10, 12, 3), 90, np.uint8), mask * np.uint8(255)])


# --- a mask an object ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "pixels",
    [
        MUG,
        MUG.astype(np.uint8),
        MUG * np.uint8(255),
        np.where(MUG, 255, 60).astype(np.uint8),
        np.dstack([MUG * np.uint8(255)] * 3),
        MUG.astype(np.uint16) * 65535,
        with_alpha(MUG),
    ],
    ids=["1 bit", "0 and 1", "0 and 255", "gray seam", "RGB", "16 bits", "opacity"],
)
def test_a_mask_of_one_object_however_it_is_saved(tmp_path: Path, pixels: NDArray[Any]) -> None:
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a" / "the_red_mug.png", pixels)
    check(f"masks:{tmp_path}", {"the red mug": MUG})


ROWS = [
    {"image": "images/a.jpg", "mask": "masks/1.png", "phrase": "red mug", "split": "val"},
    {"image": "images/a.jpg", "mask": "masks/2.png", "phrase": "a spoon", "split": "val"},
    {"image": "images/a.jpg", "mask": "masks/1.png", "phrase": "both", "split": "val"},
    {"image": "images/a.jpg", "mask": "masks/2.png", "phrase": "both", "split": "val"},
    {"image": "images/gone.jpg", "mask": "masks/2.png", "phrase": "x", "split": "train"},
]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    if path.suffix == ".csv":
        with path.open("w", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]), delimiter=";")
            table.writeheader()
            table.writerows(rows)
    else:
        dump = json.dumps if path.suffix == ".json" else yaml.safe_dump
        path.write_text(dump(rows))


@pytest.mark.parametrize("ending", [".csv", ".json", ".yaml"])
@pytest.mark.parametrize("columns", ["image mask phrase", "file_name mask_path caption"])
@pytest.mark.parametrize("short", [False, True])
def test_a_table_names_masks(tmp_path: Path, ending: str, columns: str, short: bool) -> None:
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "1.png", MUG)
    save(tmp_path / "masks" / "2.png", SPOON)
    keys = dict(zip(("image", "mask", "phrase"), columns.split(), strict=True))
    rows = [{keys.get(key, key): text for key, text in row.items()} for row in ROWS]
    if short:  # without the folders
        rows = [{key: text.split("/")[-1] for key, text in row.items()} for row in rows]
    write_rows(tmp_path / f"metadata{ending}", rows)
    expected = {"red mug": MUG, "a spoon": SPOON, "both": MUG | SPOON}
    check(f"masks:{tmp_path}@val", expected)
    check(f"masks:{tmp_path / f'metadata{ending}'}@val", expected)


def test_phrases_of_one_mask_are_sentences_of_one_object(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    save(tmp_path / "a_1.png", MUG)
    rows = [{"image": "a.jpg", "mask": "a_1.png", "text": text} for text in ("mug", "a mug", "mug")]
    write_rows(tmp_path / "masks.json", rows)
    (image,) = read(f"masks:{tmp_path}")
    assert [thing.sentences for thing in image.objects] == [("mug", "a mug")]


def test_a_table_names_values_of_label_maps(tmp_path: Path) -> None:
    save(tmp_path / "val" / "a.jpg")
    save(tmp_path / "val" / "a.png", LABELS)
    rows = [
        {"image": "a.jpg", "mask": "a.png", "value": value, "phrase": name}
        for value, name in ((1, "mug"), (2, "spoon"))
    ]
    write_rows(tmp_path / "val" / "metadata.csv", rows)
    check(f"masks:{tmp_path}@val", {"mug": MUG, "spoon": SPOON})


def test_a_folder_for_each_image_and_a_file_for_each_phrase(tmp_path: Path) -> None:
    save(tmp_path / "val" / "images" / "a.png")
    save(tmp_path / "val" / "images" / "without.png")
    save(tmp_path / "val" / "masks" / "a" / "spoon_1.png", SPOON)
    save(tmp_path / "val" / "masks" / "a" / "spoon_2.png", MUG)
    save(tmp_path / "val" / "masks" / "a" / "mug.png", MUG)
    check(f"masks:{tmp_path}@val", {"spoon": MUG | SPOON, "mug": MUG})


# --- a label map an image ------------------------------------------------------------------------

NAMED = {
    "classes.csv": "value,name\n0,background\n1,red_mug\n2,spoon\n",
    "classes.txt": "background\nred_mug\nspoon\n",
    "classes.json": '{"1": "red_mug", "2": "spoon"}',
    "labels.json": '[{"id": 1, "name": "red_mug"}, {"id": 2, "name": "spoon"}]',
    "names.yaml": "names: {red_mug: 1, spoon: 2, ignore: 255}\n",
}
COLORED = {
    "class_dict.csv": "name, r, g, b\nvoid,1,1,1\nred_mug,128,0,0\nspoon,0,7,255\n",
    "classes.json": '[{"name": "red_mug", "color": [128, 0, 0]}, {"name": "spoon", "color": '
    '"#0007ff"}, {"name": "ignore", "color": "1,1,1"}]',
}


@pytest.mark.parametrize("name", NAMED)
@pytest.mark.parametrize("layout", ["images/a.jpg masks/a.png", "a.jpg a.png", "a.png a_mask.png"])
def test_classes_by_number(tmp_path: Path, name: str, layout: str) -> None:
    image, mask = layout.split()
    save(tmp_path / image)
    save(tmp_path / mask, LABELS)
    (tmp_path / name).write_text(NAMED[name])
    check(f"masks:{tmp_path}", {"red mug": MUG, "spoon": SPOON}, VOID)


@pytest.mark.parametrize("name", COLORED)
@pytest.mark.parametrize("palette", [False, True])
def test_classes_by_color(tmp_path: Path, name: str, palette: bool) -> None:
    save(tmp_path / "images" / "val" / "a.jpg")
    table = np.array([COLORS.get(n, (9, 9, 9)) for n in range(256)], np.uint8)
    path = save(tmp_path / "masks" / "val" / "a.png", table[LABELS])
    if palette:
        stored = Image.fromarray(LABELS, "P")
        stored.putpalette(table.ravel().tolist())
        stored.save(path)
    (tmp_path / name).write_text(COLORED[name])
    check(f"masks:{tmp_path}@val", {"red mug": MUG, "spoon": SPOON}, VOID)


def test_values_without_a_name_are_left_out(tmp_path: Path) -> None:
    save(tmp_path / "a.jpg")
    mask = save(tmp_path / "a.png", LABELS)
    (tmp_path / "classes.json").write_text('{"2": "spoon"}')
    findings = Findings()
    (image,) = read(f"masks:{tmp_path}", findings)
    assert [thing.category for thing in image.objects] == ["spoon"]
    assert [item.name for item in findings.skipped] == [f"the value 1 of {mask}"]


# --- what can be wrong ---------------------------------------------------------------------------


def test_an_empty_mask_is_left_out_where_it_is_read(tmp_path: Path) -> None:
    save(tmp_path / "images" / "a.jpg")
    save(tmp_path / "masks" / "a" / "mug.png", MUG)
    save(tmp_path / "masks" / "a" / "spoon.png", MUG & False)
    report = check_source(f"masks:{tmp_path}")
    assert (report.faults, report.objects, report.absent) == ((), 1, 0)
    assert [item.reason for item in report.skipped] == ["it covers no pixel"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"classes.csv": "id,name\n1,"},
            "The class 0 of {root}/classes.csv has no name",
        ),
        ({"classes.json": "3"}, "The file {root}/classes.json names no class."),
        ({"classes.json": '[{"a": 1}]'}, "The class 0 of {root}/classes.json has no name"),
        (
            {"metadata.csv": "image,mask\na.jpg,a.png"},
            "Row 1 of {root}/metadata.csv has no 'phrase'",
        ),
        ({"metadata.csv": "image\na.jpg"}, "Row 1 of {root}/metadata.csv has no 'mask'."),
        ({"metadata.json": '{"a": 1}'}, "The file {root}/metadata.json is not a list."),
        (
            {"metadata.csv": "image,mask,label\na.jpg,b.png,x"},
            "The mask b.png of {root}/metadata.csv is missing.",
        ),
        (
            {"metadata.csv": "image,mask,label\nb.jpg,a.png,x"},
            "The image b.jpg of {root}/metadata.csv is missing.",
        ),
        ({}, "There are no masks that can be named in {root}."),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, files: dict[str, str], message: str) -> None:
    save(tmp_path / "a.jpg")
    save(tmp_path / "a.png", LABELS)
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError) as caught:
        read(f"masks:{tmp_path}")
    assert message.format(root=tmp_path) in str(caught.value)


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (LABELS[:5], "It is 5 x 12, the image 10 x 12 (height x width)."),
        (np.dstack([LABELS, LABELS, LABELS * 0]), "has colors, but its classes have numbers."),
    ],
)
def test_a_mask_that_does_not_fit(tmp_path: Path, pixels: NDArray[Any], message: str) -> None:
    save(tmp_path / "a.jpg")
    save(tmp_path / "a.png", pixels)
    (tmp_path / "classes.json").write_text('{"1": "mug"}')
    with pytest.raises(DataError) as caught:
        read(f"masks:{tmp_path}")
    assert message in str(caught.value)


def test_a_mask_of_a_photo_as_it_is_stored(tmp_path: Path) -> None:
    """A photo that EXIF data turn, annotated by a tool that does not turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (12, 10)).save(tmp_path / "a.jpg", exif=exif)
    (tmp_path / "classes.json").write_text('{"1": "mug", "2": "spoon"}')
    save(tmp_path / "a.png", LABELS)
    check(f"masks:{tmp_path}", {"mug": MUG, "spoon": SPOON}, VOID)
    turned = np.rot90(LABELS, -1)
    save(tmp_path / "a.png", turned)
    check(f"masks:{tmp_path}", {"mug": turned == 1, "spoon": turned == 2}, turned == 255)


def test_images_elsewhere(tmp_path: Path) -> None:
    save(tmp_path / "photos" / "a.jpg")
    save(tmp_path / "set" / "masks" / "a.png", LABELS)
    (tmp_path / "set" / "classes.txt").write_text("background\nmug\nspoon")
    source = f"masks:{tmp_path / 'set'},images={tmp_path / 'photos'}"
    check(source, {"mug": MUG, "spoon": SPOON}, VOID)
