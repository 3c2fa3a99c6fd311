"""Tags, pixels to ignore and captions in a metadata.jsonl."""

from __future__ import annotations

from typing import Any

import pytest

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.sources import open_source
from flmm_core.segment import Segment
from tests.data.conftest import read
from tests.data.formats.conftest import File


@pytest.fixture
def rich(record: dict[str, Any]) -> dict[str, Any]:
    record["objects"] |= {
        "tags": [["plural", "thing"], []],
        "ignore": [None, {"size": [6, 8], "counts": [0, 6, 42]}],
    }
    record["captions"] = [
        [{"text": "There is ", "object": -1}, {"text": "a stripe", "object": 1}],
        [
            {"text": "A stripe", "object": 1},
            {"text": " and ", "object": -1},
            {"text": "a box", "object": 0},
        ],
    ]
    return record


def test_tags_ignored_pixels_and_captions_are_read(file: File, rich: dict[str, Any]) -> None:
    first, second = read(f"jsonl:{file.write(rich)}")
    (stripe,) = first.objects
    assert first.caption == (Segment("There is "), Segment("a stripe", 0))
    assert second.caption == (Segment("A stripe", 0), Segment(" and "), Segment("a box", 1))
    assert [thing.name for thing in second.objects] == ["1", "0"]
    assert stripe.tags == frozenset()
    assert second.objects[1].tags == {"plural", "thing"}
    assert stripe.ignore is not None
    assert rle.bbox(stripe.ignore) == (0, 0, 1, 6)
    samples = open_source(f"jsonl:{file.path}")
    assert [sample.caption for sample in samples] == ["There is a stripe", "A stripe and a box"]
    assert [sample.name for sample in samples] == ["jsonl/a.png#0", "jsonl/a.png#1"]


def test_columns_that_another_tool_filled_with_null_are_none(
    file: File, record: dict[str, Any]
) -> None:
    plain = read(f"jsonl:{file.write(record)}")
    record["captions"] = None
    record["objects"] |= {"tags": None, "ignore": None, "category": None}
    assert read(f"jsonl:{file.write(record)}") == plain


def test_an_object_that_no_caption_names_is_left_out_and_told(
    file: File, rich: dict[str, Any]
) -> None:
    del rich["captions"][1]
    findings = Findings()
    (image,) = read(f"jsonl:{file.write(rich)}", findings)
    assert len(image.objects) == 1
    assert [(s.name, s.reason) for s in findings.skipped] == [
        (f"object 0 on line 1 of {file.path}", "no caption names it")
    ]


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (
            {"text": "x", "object": 2},
            (
                "Piece 1 of caption 0 on line 1 of {path} names the object 2.\n"
                "The line has 2 objects; -1 names none."
            ),
        ),
        (
            {"text": " ", "object": 1},
            "Piece 1 of caption 0 on line 1 of {path} names an object without words.",
        ),
        (
            {"text": "x", "object": -1},
            "Caption 0 on line 1 of {path} names no object.\nRemove it.",
        ),
        (
            {"object": 1},
            (
                "Piece 1 of caption 0 on line 1 of {path} has no 'text'.\nIts keys: object.\n"
                "Add the key, or get an unchanged copy of the file."
            ),
        ),
    ],
)
def test_captions_that_are_wrong(
    file: File, rich: dict[str, Any], piece: dict[str, Any], message: str
) -> None:
    rich["captions"][0][1] = piece
    assert file.fails(rich) == message.format(path=file.path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (
            "tags",
            ["thing", []],
            "Object 0 on line 1 of {path} has 'thing' for 'tags'.\nExpected a list of strings.",
        ),
        (
            "ignore",
            [None, 3],
            (
                "The mask of the ignored pixels of object 1 on line 1 of {path} is neither a list "
                "of polygons nor an RLE.\nIt is 3."
            ),
        ),
    ],
)
def test_further_columns_that_are_wrong(
    file: File, rich: dict[str, Any], column: str, value: Any, message: str
) -> None:
    rich["objects"][column] = value
    assert file.fails(rich) == message.format(path=file.path)
