from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.labelme import IGNORE
from flmm_core.errors import DataError
from tests.data.conftest import read


def shape(label: str, points: list[list[float]], kind: str | None = "polygon") -> dict[str, Any]:
    return {"label": label, "points": points, "shape_type": kind, "group_id": None, "flags": {}}


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "a.json"
        self.record: dict[str, Any] = {
            "version": "5.4.1",
            "imagePath": "a.png",
            "imageData": None,
            "imageHeight": 10,
            "imageWidth": 12,
            "shapes": [
                shape("red mug", [[0, 0], [2, 0], [2, 2], [0, 2]]),
                shape("spoon", [[5, 5], [7, 7]], "rectangle"),
                shape("red mug", [[8, 2], [8, 3]], "circle"),
            ],
        }

    def save(self) -> Path:
        self.folder.mkdir(exist_ok=True)
        Image.new("RGB", (12, 10)).save(self.folder / "a.png")
        self.file.write_text(json.dumps(self.record))
        return self.folder

    def fails(self) -> str:
        with pytest.raises(DataError) as caught:
            read(f"labelme:{self.save()}")
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path / "set")


def test_a_label_names_all_its_shapes(files: Files) -> None:
    (image,) = read(f"labelme:{files.save()}")
    mugs, spoon = image.objects
    assert (mugs.sentences, spoon.sentences) == (("red mug",), ("spoon",))
    expected = np.zeros((10, 12), dtype=bool)
    expected[0:3, 0:3] = True
    expected[2, 7:10] = expected[1:4, 8] = True
    np.testing.assert_array_equal(rle.decode(mugs.read_mask()), expected)
    assert rle.bbox(spoon.read_mask()) == (5, 5, 3, 3)
    assert mugs.ignore is spoon.ignore is None


def test_a_file_a_folder_and_a_split_can_be_given(files: Files) -> None:
    folder = files.save()
    assert read(f"labelme:{files.file}") == read(f"labelme:{folder}")
    (image,) = read(f"labelme:{folder.parent}@set")
    assert {thing.split for thing in image.objects} == {"set"}
    with pytest.raises(DataError) as caught:
        read(f"labelme:{folder.parent}@sat")
    assert str(caught.value) == (
        f"There is no LabelMe file in {folder.parent}/sat.\n"
        f"Looked for {folder.parent}/sat/*.json. Folders with such files: set.\n"
        "Give the folder that LabelMe saved to; a folder in it after an '@'."
    )


def test_ignored_pixels(files: Files) -> None:
    files.record["shapes"].append(shape(IGNORE, [[0, 0], [5, 0], [5, 0.4], [0, 0.4]]))
    mugs, spoon = read(f"labelme:{files.save()}")[0].objects
    assert mugs.ignore is not None
    assert spoon.ignore is not None
    assert (rle.area(mugs.ignore), rle.area(spoon.ignore)) == (3, 6)


def test_older_files_and_those_of_windows(files: Files) -> None:
    files.record["imagePath"] = "..\\set\\a.png"
    del files.record["shapes"][0]["shape_type"]
    assert len(read(f"labelme:{files.save()}")[0].objects) == 2


def test_an_image_without_shapes_is_left_out(files: Files) -> None:
    files.record["shapes"] = []
    findings = Findings(keep_on=True)
    assert read(f"labelme:{files.save()}", findings) == ()
    (skipped,) = findings.skipped
    assert (skipped.name, skipped.reason) == (str(files.file), "it has no shape")
    assert not skipped.counts


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (shape(" ", []), "Shape 0 of {file} has an empty label."),
        (
            shape("a", [[0, 0], [1]]),
            (
                "The points of shape 0 of {file} are [[0, 0], [1]].\n"
                "Expected a list of 3 or more points [x, y], finite numbers in pixels."
            ),
        ),
        (
            shape("a", [[0, 0], [1, 1]], "mask"),
            (
                "Shape 0 of {file} has no 'mask'.\n"
                "Its keys: label, points, shape_type, group_id, flags.\n"
                "Add the key, or get an unchanged copy of the file."
            ),
        ),
        (
            shape("a", [[0, 0], [1, 1]], "mask") | {"mask": "AAAA"},
            "The mask of shape 0 of {file} is not a PNG in base64.\ncannot identify image",
        ),
    ],
)
def test_what_is_wrong_with_a_shape_is_named(
    files: Files, bad: dict[str, Any], message: str
) -> None:
    files.record["shapes"] = [bad]
    assert files.fails().startswith(message.format(file=files.file))


def test_a_missing_image(files: Files) -> None:
    files.record["imagePath"] = "b.png"
    assert files.fails() == (
        f"The image b.png of {files.file} is missing.\n"
        f"Looked for:\n  {files.folder}/b.png\n"
        "Save the image there; 'imagePath' is relative to the folder of the file."
    )
    files.record["imageData"] = "iVBO"
    assert files.fails() == (
        f"The 'imageData' of {files.file} is not an image in base64.\n"
        "There is no file named b.png either.\n"
        "Save the image under the name in 'imagePath'."
    )
