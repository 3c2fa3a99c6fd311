"""The files of a benchmark: what is written can be read, and what is broken is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from flmm_core.errors import DataError
from flmm_core.evaluation.benchmark_folder import (
    measurement_folders,
    read_benchmark,
    read_measurement,
    source_label,
    write_facts,
)
from flmm_core.evaluation.phrase_rows import ITEMS, read_rows, read_some_rows, write_rows
from tests.report.benchmarks import disc, facts, make_row, measurement_facts, random_rows


def test_what_is_written_is_read(tmp_path: Path) -> None:
    items = list(random_rows(0, 0.5, absent=0.2))
    write_rows(tmp_path / ITEMS, items)
    assert list(read_rows(tmp_path / "items.jsonl")) == items
    assert read_some_rows(tmp_path / "items.jsonl", [3, 0]) == {0: items[0], 3: items[3]}
    assert not list(tmp_path.glob("*.partial"))


def test_facts_keep_what_a_later_writer_adds(tmp_path: Path) -> None:
    write_facts(tmp_path, facts(ranks=2))
    write_facts(tmp_path, measurement_facts("alpha", "shapes@test", threshold=0.4))
    assert read_benchmark(tmp_path) == facts(ranks=2)
    assert read_benchmark(tmp_path).model_dump()["ranks"] == 2
    assert read_measurement(tmp_path).model_dump()["threshold"] == 0.4


def test_a_row_is_the_documented_json() -> None:
    item = make_row("a#0", "a.png", disc(10, 10, 5), disc(10, 12, 5), distractors=None)
    row = json.loads(item.to_line())
    assert set(row) == {
        "item", "picture", "phrase", "slice", "tags", "size", "segmentation",
        "truth_segmentation", "intersection", "union", "predicted", "truth", "ignored",
        "coarse_intersection", "coarse_union", "score", "probability", "box_iou",
        "point_in_mask", "distractors", "seconds", "there", "as_stored",
    }  # fmt: skip
    assert row["size"] == row["segmentation"]["size"] == [48, 64]
    assert isinstance(row["segmentation"]["counts"], str)
    assert row["tags"] == []
    assert row["distractors"] is row["probability"] is None


def test_unfinished_measurements_are_told_apart(tmp_path: Path) -> None:
    write_facts(tmp_path / "cells" / "b", measurement_facts("b", "shapes@test"))
    (tmp_path / "cells" / "a").mkdir()
    (tmp_path / "cells" / "note.txt").write_text("")
    assert measurement_folders(tmp_path) == ([tmp_path / "cells/b"], [tmp_path / "cells/a"])


@pytest.mark.parametrize(
    ("source", "label"),
    [
        ("shapes@test", "shapes@test"),
        ("refcoco+:/data/coco@testA", "refcoco+@testA"),
        ("jsonl:/my/metadata.jsonl", "jsonl"),
        ("jsonl:C:/a@b/metadata.jsonl", "jsonl"),
        ("refcoco:/data/rrsisd@val,images=/photos", "refcoco@val"),
        ("", ""),
    ],
)
def test_a_label_is_the_source_without_its_path(source: str, label: str) -> None:
    assert source_label(source) == label


def lines(tmp_path: Path) -> tuple[Path, list[str]]:
    write_rows(tmp_path / ITEMS, list(random_rows(0, 0.5, 3)))
    path = tmp_path / "items.jsonl"
    return path, path.read_text().splitlines(keepends=True)


def test_half_a_line_is_named(tmp_path: Path) -> None:
    path, rows = lines(tmp_path)
    path.write_text("".join(rows[:2]) + rows[2][:40])
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    first, found, repair = str(caught.value).splitlines()
    assert first == f"Line 3 of {path} is not complete JSON."
    assert found.startswith("Invalid JSON: EOF while parsing")
    assert repair == "The line may be truncated; remove it and repeat the measurement."


def test_an_empty_line_is_named(tmp_path: Path) -> None:
    path, rows = lines(tmp_path)
    path.write_text(rows[0] + "\n" + rows[1])
    with pytest.raises(DataError, match=f"^Line 2 of {path} is not complete JSON"):
        list(read_rows(path))


def test_an_item_that_comes_twice_is_named(tmp_path: Path) -> None:
    path, rows = lines(tmp_path)
    path.write_text("".join([*rows, rows[1]]))
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    name = json.loads(rows[1])["item"]
    assert str(caught.value) == (
        f"The item '{name}' occurs twice in {path}.\n"
        f"On lines 2 and {len(rows) + 1}.\n"
        "Remove one of them, or repeat the measurement."
    )


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"union": -1}, "union: Input should be greater than or equal to 0"),
        ({"union": "12"}, "union: Input should be a valid integer"),
        ({"probability": 1.5}, "probability: Input should be less than or equal to 1"),
        ({"score": float("nan")}, "score: Input should be a finite number"),
        ({"iou": 0.5}, "iou: Extra inputs are not permitted"),
        ({"size": [3, 4]}, "Value error, segmentation has the size"),
        ({"intersection": 10**6}, "Value error, an intersection of 1000000 with union"),
        ({"union": 10**6}, "Value error, a union of 1000000 of predicted"),
        ({"coarse_union": None}, "Value error, coarse_intersection and coarse_union come together"),
    ],
)
def test_a_row_that_cannot_be_is_named(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path, rows = lines(tmp_path)
    path.write_text(rows[0] + json.dumps(json.loads(rows[1]) | change) + "\n")
    with pytest.raises(DataError) as caught:
        list(read_rows(path))
    first, found, _ = str(caught.value).splitlines()
    assert first == f"Line 2 of {path} is not a row of a benchmark."
    assert found.startswith(reason)


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    path, rows = lines(tmp_path)
    row = json.loads(rows[0])
    del row["truth"]
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=r"\ntruth: Field required\.\n"):
        list(read_rows(path))


def test_a_newer_format_and_a_missing_file_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_benchmark(tmp_path)
    assert str(caught.value) == (
        f"The file {tmp_path}/benchmark.json cannot be read.\n"
        "No such file or directory.\n"
        "Give the folder that `flmm benchmark` wrote."
    )
    (tmp_path / "benchmark.json").write_text(
        json.dumps({"format": 2, "created": "", "command": "", "protocol": ""})
    )
    with pytest.raises(DataError, match=r"is not of benchmark format 1\.\nformat: Input should"):
        read_benchmark(tmp_path)


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    def broken() -> Any:
        yield from random_rows(0, 0.5, 2)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(tmp_path / ITEMS, broken())
    assert not (tmp_path / "items.jsonl").exists()


def test_rows_cannot_be_changed() -> None:
    item = next(random_rows(0, 0.5))
    with pytest.raises(ValidationError):
        item.union = 3  # type: ignore[misc]
