from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.formats import FORMATS
from flmm_core.errors import DataError
from tests.data.conftest import read
from tests.data.formats.conftest import File


def test_a_users_file_is_read(file: File, record: dict[str, Any]) -> None:
    (image,) = read(f"jsonl:{file.write('', record)}")  # a blank line is nothing
    assert image.path == file.path.parent / "a.png"
    assert image.image_hw == (6, 8)
    box, stripe = image.objects
    assert box.sentences == ("a box", "the grey box")
    assert (box.category, box.slice, box.name) == ("", "", "0")
    expected = np.zeros((6, 8), dtype=bool)
    expected[0:3, 0:4] = True
    np.testing.assert_array_equal(rle.decode(box.mask), expected)
    assert rle.bbox(stripe.mask) == (1, 0, 1, 6)


def test_what_is_written_is_read_back(tmp_path: Path, drawn_images: Any) -> None:
    root = FORMATS["jsonl"].write(tmp_path / "drawn", iter(drawn_images))
    first, third = read(f"jsonl:{root}@train")
    (second,) = read(f"jsonl:{root}@val")
    for image, new in zip((first, second, third), drawn_images, strict=True):
        assert image.file_name == f"images/{new.file_name}"
        assert image.image_hw == (new.image.height, new.image.width)
        with Image.open(image.path) as stored:
            assert stored.tobytes() == new.image.tobytes()
        for thing, drawn in zip(image.objects, new.objects, strict=True):
            assert thing.mask == drawn.mask
            assert thing.sentences == drawn.sentences
            assert (thing.category, thing.slice) == (drawn.category, drawn.slice)


def test_every_line_that_is_written_has_the_same_types(tmp_path: Path, drawn_images: Any) -> None:
    """Arrow, and so a Hugging Face imagefolder, cannot read a column of mixed types."""
    root = FORMATS["jsonl"].write(tmp_path, drawn_images)

    def form(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: form(inner) for key, inner in value.items()}
        if isinstance(value, list):
            forms = [form(inner) for inner in value]
            assert all(inner == forms[0] for inner in forms)
            return forms[:1]
        return type(value).__name__

    texts = [p.read_text() for p in sorted(root.glob("*/metadata.jsonl"))]
    forms = [form(json.loads(line)) for text in texts for line in text.splitlines()]
    assert len(forms) == 3
    assert forms[0] == forms[1] == forms[2]
    assert forms[0] == {
        "file_name": "str",
        "width": "int",
        "height": "int",
        "objects": {
            "phrases": [["str"]],
            "segmentation": [{"size": ["int"], "counts": "str"}],
            "category": ["str"],
            "slice": ["str"],
        },
    }


def test_an_image_in_two_splits_is_written_to_both(tmp_path: Path, drawn_images: Any) -> None:
    square, ring = drawn_images[0].objects
    twice = drawn_images[0]._replace(objects=[square, replace(ring, split="val")])
    root = FORMATS["jsonl"].write(tmp_path, [twice])
    assert [len(read(f"jsonl:{root}@{s}")[0].objects) for s in ("train", "val")] == [1, 1]


def test_a_drawing_that_fails_leaves_no_data_set(tmp_path: Path, drawn_images: Any) -> None:
    def broken() -> Any:
        yield drawn_images[0]
        raise RuntimeError("the pencil broke")

    with pytest.raises(RuntimeError, match="the pencil broke"):
        FORMATS["jsonl"].write(tmp_path, broken())
    assert not list(tmp_path.rglob("*.jsonl*"))


def test_where_the_file_is(tmp_path: Path, file: File, record: dict[str, Any]) -> None:
    path = file.write(record)
    assert read(f"jsonl:{path}") == read(f"jsonl:{tmp_path}")
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "metadata.jsonl").touch()
    with pytest.raises(DataError, match=f"The file {tmp_path}/train/metadata.jsonl has no images"):
        read(f"jsonl:{tmp_path}@train")
    with pytest.raises(DataError) as caught:
        read(f"jsonl:{tmp_path}@trein")
    assert str(caught.value) == (
        f"The file {tmp_path}/trein/metadata.jsonl is missing.\n"
        "Did you mean 'train'? Splits: train. Looked for:\n"
        f"  {tmp_path}/trein/metadata.jsonl\n"
        "Name a split after the '@', or give the path of the file."
    )
    with pytest.raises(DataError) as caught:
        read(f"jsonl:{path}@train")
    assert str(caught.value) == (
        f"The file {path} has no splits, but the split 'train' was asked for.\n"
        "Leave '@' and the split away, or give the folder that holds 'train/metadata.jsonl'."
    )


def test_a_line_cut_in_half(file: File, record: dict[str, Any]) -> None:
    other = {**record, "file_name": "b.png"}
    message = file.fails(record, json.dumps(other)[:50])
    assert message.splitlines()[0] == f"Line 2 of {file.path} is not whole JSON."
    assert message.splitlines()[2] == "It may be cut off; download, copy or write it again."


def test_a_file_that_is_not_utf_8(file: File, record: dict[str, Any]) -> None:
    file.path.write_bytes(json.dumps(record).encode() + b'\n{"file_name": "\xe9"}\n')
    with pytest.raises(DataError, match=rf"Line 2 of {file.path} is not in UTF-8\.\n'utf-8'"):
        read(f"jsonl:{file.path}")


@pytest.mark.parametrize("key", ["file_name", "width", "height", "objects"])
def test_a_missing_key(file: File, record: dict[str, Any], key: str) -> None:
    keys = ", ".join(other for other in record if other != key)
    del record[key]
    assert file.fails(record) == (
        f"Line 1 of {file.path} has no '{key}'.\n"
        f"Its keys: {keys}.\n"
        "Add the key, or get an unchanged copy of the file."
    )


def test_a_missing_key_of_the_objects(file: File, record: dict[str, Any]) -> None:
    del record["objects"]["segmentation"]
    assert file.fails(record) == (
        f"'objects' on line 1 of {file.path} has no 'segmentation'.\n"
        "Its keys: phrases.\n"
        "Add the key, or get an unchanged copy of the file."
    )


def test_a_missing_image(file: File, record: dict[str, Any]) -> None:
    other = {**record, "file_name": "no/such.png"}
    assert file.fails(record, other) == (
        f"The image no/such.png on line 2 of {file.path} is missing.\n"
        f"Looked for:\n  {file.path.parent}/no/such.png\n"
        "'file_name' is relative to the folder of the file."
    )


def test_an_image_on_two_lines(file: File, record: dict[str, Any]) -> None:
    assert file.fails(record, record) == (
        f"The image a.png occurs twice in {file.path}.\n"
        "On lines 1 and 2.\n"
        "Put all objects of an image on one line."
    )


def test_a_mask_that_does_not_fit(file: File, record: dict[str, Any]) -> None:
    assert file.fails({**record, "width": 9}) == (
        f"The mask of object 1 on line 1 of {file.path} does not fit its image.\n"
        "The RLE is 6 x 8, the image 6 x 9 (height x width).\n"
        "Check that the annotation belongs to this image and was made at its size."
    )


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "segmentation",
            [],
            (
                "'objects' on line 1 of {path} has lists of different lengths.\n"
                "'phrases' has 2 entries, 'segmentation' has 0.\n"
                "Every list has one entry for each object."
            ),
        ),
        (
            "phrases",
            [["a"], "b"],
            (
                "Object 1 on line 1 of {path} has 'b' for 'phrases'.\n"
                "Expected a list of strings, at least one and none empty."
            ),
        ),
        (
            "phrases",
            [["a"], [" "]],
            (
                "Object 1 on line 1 of {path} has [' '] for 'phrases'.\n"
                "Expected a list of strings, at least one and none empty."
            ),
        ),
        (
            "category",
            ["a", 3],
            "Object 1 on line 1 of {path} has 3 for 'category'.\nExpected a string.",
        ),
        (
            "phrases",
            [],
            (
                "'objects' on line 1 of {path} has no objects.\n"
                "Its lists are empty.\n"
                "Remove the line, or describe an object."
            ),
        ),
    ],
)
def test_objects_that_are_wrong(
    file: File, record: dict[str, Any], column: str, value: Any, message: str
) -> None:
    record["objects"][column] = value
    assert file.fails(record) == message.format(path=file.path)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        ("8", "Line 1 of {path} has '8' for 'width'.\nExpected an integer."),
        (True, "Line 1 of {path} has True for 'width'.\nExpected an integer."),
        (
            0,
            (
                "Line 1 of {path} has the size 6 x 0 (height x width).\n"
                "Both must be at least 1, and an image has at most 100 megapixels."
            ),
        ),
        (
            10**9,
            (
                "Line 1 of {path} has the size 6 x 1000000000 (height x width).\n"
                "Both must be at least 1, and an image has at most 100 megapixels."
            ),
        ),
    ],
)
def test_sizes_that_are_wrong(file: File, record: dict[str, Any], width: Any, message: str) -> None:
    assert file.fails({**record, "width": width}) == message.format(path=file.path)


def test_lines_that_are_no_records(file: File) -> None:
    assert file.fails("[1]") == f"Line 1 of {file.path} is not a mapping.\nIt is [1]."
    assert file.fails("") == f"The file {file.path} has no images.\nIt has no lines."
