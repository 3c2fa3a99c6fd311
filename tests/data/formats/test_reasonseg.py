from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError
from tests.data.conftest import read


def shape(label: str, left: float, top: float, right: float, bottom: float) -> dict[str, Any]:
    points = [[left, top], [right, top], [right, bottom], [left, bottom]]
    return {"label": label, "labels": [label], "shape_type": "polygon", "points": points}


class Files:
    """ReasonSeg/val as it is distributed: an image and its JSON file under one name."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.file = root / "ReasonSeg" / "val" / "1_a.json"
        self.record: dict[str, Any] = {
            "text": ["the place where one sleeps", "what is soft?"],
            "is_sentence": True,
            "shapes": [shape("ignore", 4, 4, 5, 6), shape("target", 2.7, 3.2, 9.9, 8)],
        }

    def save(self, encoding: str = "utf-8") -> Files:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 10)).save(self.file.with_suffix(".jpg"))
        self.file.write_bytes(json.dumps(self.record, ensure_ascii=False).encode(encoding))
        return self

    def fails(self) -> str:
        with pytest.raises(DataError) as caught:
            read(f"reasonseg:{self.save().root}@val")
        return str(caught.value)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def test_a_distributed_folder_is_read(files: Files) -> None:
    (image,) = read(f"reasonseg:{files.save().root}@val")
    assert (image.file_name, image.image_hw) == ("1_a.jpg", (10, 12))
    (thing,) = image.objects
    target = np.zeros((10, 12), dtype=bool)
    target[3:9, 2:10] = True  # cut to whole pixels, its outline is inside
    target[4:7, 4:6] = False  # the smaller polygon is painted later
    np.testing.assert_array_equal(rle.decode(thing.read_mask()), target)
    ignored = np.zeros((10, 12), dtype=bool)
    ignored[4:7, 4:6] = True
    assert thing.ignore is not None
    np.testing.assert_array_equal(rle.decode(thing.ignore), ignored)
    assert (thing.slice, thing.split) == ("long query", "val")


def test_the_ignored_pixels_reach_the_sample(files: Files) -> None:
    files.save()
    samples = open_source(f"reasonseg:{files.root}@val")
    assert [sample.phrases[0].text for sample in samples] == files.record["text"]
    for sample in samples:
        ignored = sample.phrases[0].ignore
        assert ignored is not None
        assert rle.area(ignored) == 6
    (paper,) = open_source(f"reasonseg:{files.root}@val", "flmm-paper")
    assert paper.phrases[0].text == files.record["text"][0]


@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_both_encodings_are_read(files: Files, encoding: str) -> None:
    files.record["text"] = ["the café’s door"]
    (image,) = read(f"reasonseg:{files.save(encoding).root}@val")
    assert image.objects[0].sentences == ("the café’s door",)


def test_shapes_that_mean_nothing_and_short_queries(files: Files) -> None:
    files.record["shapes"] = [shape("target", 0, 0, 1, 1), shape("flag", 5, 5, 9, 9)]
    files.record["is_sentence"] = False
    (image,) = read(f"reasonseg:{files.save().root}@val")
    (thing,) = image.objects
    assert rle.area(thing.read_mask()) == 4
    assert thing.ignore is None
    assert thing.slice == "short query"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"shapes": [shape("targett", 0, 0, 1, 1)]},
            "Shape 0 of {file} has the label 'targett'.\nKnown: target, ignore, flag.",
        ),
        (
            {"shapes": [shape("target", 0, 0, 1, 1) | {"points": [[1, "2"]]}]},
            (
                "The points of shape 0 of {file} are [[1, '2']].\n"
                "Expected a list of 3 or more points [x, y], finite numbers in pixels."
            ),
        ),
        (
            {"text": []},
            (
                "The file {file} has [] for 'text'.\n"
                "Expected a list of strings, at least one and none empty."
            ),
        ),
        (
            {"is_sentence": "yes"},
            "The file {file} has 'yes' for 'is_sentence'.\nExpected true or false.",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(
    files: Files, change: dict[str, Any], message: str
) -> None:
    files.record |= change
    assert files.fails() == message.format(file=files.file)


def test_a_missing_image_and_a_missing_split(files: Files) -> None:
    files.save()
    with pytest.raises(DataError) as caught:
        read(f"reasonseg:{files.root}@vall")
    assert str(caught.value) == (
        f"There is no split 'vall' of ReasonSeg in {files.root}. Did you mean 'val'?\n"
        "Its splits: val. Looked for:\n"
        f"  {files.root}/ReasonSeg/vall/*.json\n  {files.root}/vall/*.json\n"
        "Give the folder that holds 'ReasonSeg/', and name a split after the '@'."
    )
    files.file.with_suffix(".jpg").unlink()
    with pytest.raises(DataError) as caught:
        read(f"reasonseg:{files.root}@val")
    assert str(caught.value) == (
        f"The image of {files.file} is missing.\nLooked for:\n"
        + "".join(f"  {files.file.with_suffix(e)}\n" for e in (".jpg", ".jpeg", ".png"))
        + "Each image lies beside its JSON file under the same name."
    )
