"""Names of images as other tools and other machines write them, and where the images lie."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS, writable_formats
from flmm_core.data.formats.shared.image_paths import tails
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError
from tests.data.conftest import read

SQUARE = [[1, 1, 5, 1, 5, 6, 1, 6]]


def save_image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10)).save(path)
    return path


def save_coco(folder: Path, *names: str) -> Path:
    images = [
        {"id": n, "file_name": name, "width": 12, "height": 10} for n, name in enumerate(names)
    ]
    annotations = [
        {"id": n, "image_id": n, "category_id": 1, "segmentation": SQUARE}
        for n in range(len(names))
    ]
    categories = [{"id": 1, "name": "cup"}]
    folder.mkdir(parents=True, exist_ok=True)
    data = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(data))
    return folder


WRITTEN = [
    ("images\\a.png", "images/a.png"),
    ("..\\..\\label-studio\\data\\media\\a.png", "a.png"),
    ("..\\..\\label-studio\\data\\media\\a.png", "images/media/a.png"),
    ("C:\\Users\\me\\pictures\\a.png", "images/a.png"),
    ("D:/set/images/a.png", "images/a.png"),
    ("/home/me/set/b/a.png", "images/b/a.png"),
    ("\\\\server\\share\\a.png", "images/a.png"),
    ("images/my%20mug.png", "images/my mug.png"),
    ("images\\%E6%9D%AF.png", "images/杯.png"),
    ("100%.png", "images/100%.png"),
    ("a\\b.png", "images/a\\b.png"),
    ("/data/local-files/?d=images/a%20b.png", "images/a b.png"),
    ("http://localhost:8080/data/upload/3/a.png", "images/a.png"),
    ("https://bucket.host/set/a%20b.png?token=1/2", "images/a b.png"),
    ("s3://bucket/set/a.png", "set/a.png"),
    ("\u00e9tude.png", "e\u0301tude.png"),
    ("e\u0301tude.png", "\u00e9tude.png"),
]


@pytest.mark.parametrize(("written", "there"), WRITTEN)
def test_an_image_is_found_as_it_was_written_elsewhere(
    tmp_path: Path, written: str, there: str
) -> None:
    path = save_image(tmp_path / there)
    (image,) = read(f"coco:{save_coco(tmp_path, written)}")
    assert (image.path, image.file_name) == (path, written)


def test_images_of_one_name_in_two_folders_are_never_mixed(tmp_path: Path) -> None:
    first, second = (save_image(tmp_path / "images" / sub / "1.png") for sub in ("a", "b"))
    folder = save_coco(tmp_path, "x\\a\\1.png", "x\\b\\1.png")
    assert [image.path for image in read(f"coco:{folder}")] == [first, second]
    # Without its folder it cannot be told which of the two an image is.
    first.rename(tmp_path / "images" / "1.png")
    with pytest.raises(DataError) as caught:
        read(f"coco:{folder}")
    assert caught.value.found.startswith(
        "Several images of the file are named 1.png; only folders differ. Looked for x\\a\\1.png, "
        "x/a/1.png, a/1.png in:\n"
    )


def test_two_spellings_of_a_name_are_one_image(tmp_path: Path) -> None:
    path = save_image(tmp_path / "1.png")
    folder = save_coco(tmp_path, "x\\1.png", "x/1.png")
    assert [image.path for image in read(f"coco:{folder}")] == [path, path]


def test_the_ends_of_a_path() -> None:
    assert tails("C:\\a\\..\\b\\c.jpg") == ["b/c.jpg", "c.jpg"]
    assert tails("") == []


@pytest.mark.parametrize("form", writable_formats())
def test_the_images_may_lie_in_any_folder(form: str, tmp_path: Path) -> None:
    """`images=DIR`, for every format, with the folders that the names have."""
    FORMATS[form].write(tmp_path / "set", draw_images(2, 11, extras=FORMATS[form].extras))
    text = f"{form}:{tmp_path / 'set'}@train"
    before = list(open_source(text))
    elsewhere = tmp_path / "photos, mine"
    for path in {sample.image_path for sample in before}:
        inside = "images" if form == "jsonl" else "."
        (elsewhere / inside).mkdir(parents=True, exist_ok=True)
        path.rename(elsewhere / inside / path.name)
    with pytest.raises(DataError, match="is missing"):
        open_source(text)
    after = list(open_source(f"{text},images={tmp_path}/photos, mine"))
    assert [sample.image_path.parent.parts[-1] in ("images", "photos, mine") for sample in after]
    assert [sample.segments for sample in after] == [sample.segments for sample in before]
    assert [sample.image_path.name for sample in after] == [s.image_path.name for s in before]


@pytest.mark.parametrize("form", writable_formats())
def test_every_reader_finds_images_named_on_windows(form: str, tmp_path: Path) -> None:
    FORMATS[form].write(tmp_path, draw_images(2, 11, extras=FORMATS[form].extras))
    text = f"{form}:{tmp_path}@train"
    before = list(open_source(text))
    key = "imagePath" if form == "labelme" else "file_name"
    start = ".\\\\" if form in ("jsonl", "labelme") else "D:\\\\set\\\\"
    for file in tmp_path.rglob("*.json*"):
        written = file.read_text().replace("images/", "images\\\\")
        file.write_text(written.replace(f'"{key}": "', f'"{key}": "{start}'))
        if form == "png":  # its own PNGs are not images of the data set
            file.write_text(
                re.sub(r'(?<="file_name": ")[^"]*(?=0{11}\d\.png)', "", file.read_text())
            )
    if form != "reasonseg":  # has no names
        assert any(f'"{key}": "{start}' in file.read_text() for file in tmp_path.rglob("*.json*"))
    after = list(open_source(text))
    assert [sample.image_path for sample in after] == [sample.image_path for sample in before]
    assert [sample.phrases for sample in after] == [sample.phrases for sample in before]


def test_a_set_of_another_name_in_refcocos_form(tmp_path: Path) -> None:
    """RRSIS-D's layout, with a list of RLEs as its masks have."""
    path = save_image(tmp_path / "images" / "rrsisd" / "JPEGImages" / "00011.jpg")
    folder = save_coco(tmp_path / "rrsisd", "00011.jpg")
    data = json.loads((folder / "instances.json").read_text())
    data["annotations"][0]["segmentation"] = [{"size": [10, 12], "counts": [60, 20, 40]}]
    (folder / "instances.json").write_text(json.dumps(data))
    ref: dict[str, Any] = {"ref_id": 1, "ann_id": 0, "image_id": 0, "split": "val"}
    ref["sentences"] = [{"sent": "the ship"}]
    (folder / "refs(unc).p").write_bytes(pickle.dumps([ref]))
    for place in (folder, f"{folder}/"):
        assert read(f"refcoco:{place}@val")[0].path == path
    moved = save_image(tmp_path / "elsewhere" / "00011.jpg")
    assert read(f"refcoco:{folder}@val,images={tmp_path}/elsewhere")[0].path == moved
