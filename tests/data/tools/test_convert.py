"""Faults stop a conversion before anything is written; those found late leave nothing either."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.tools.convert import convert_source
from flmm_core.errors import DataError
from tests.data.conftest import Distributed
from tests.data.formats.shared.test_plain_pickle import Bomb

Case = tuple[str, str]
"""A source and the first line of its fault."""


def a_refs_file_that_runs_code(root: Path) -> Case:
    made = Distributed(root).save_refs([Bomb(root / "was-run")])
    return f"refcoco:{root}@val", f"The file {made.refs_path} is not a plain data file: it asks for"


def a_panoptic_png_of_the_wrong_size(root: Path) -> Case:
    FORMATS["png"].write(root, draw_images(3, 1))
    png = sorted(root.glob("annotations/panoptic_segmentation/*/*.png"))[1]
    Image.new("RGB", (3, 3)).save(png)
    text = f"The panoptic PNG {png} does not have the size of its image."
    return f"png:{root}@train", text


def a_segment_without_a_pixel(root: Path) -> Case:
    FORMATS["png"].write(root, draw_images(3, 1))
    png = sorted(root.glob("annotations/panoptic_segmentation/*/*.png"))[2]
    with Image.open(png) as stored:
        Image.fromarray(np.zeros_like(np.asarray(stored))).save(png)
    return f"png:{root}@train", f"The segment 70001 has no pixel in {png}."


def an_annotation_without_an_image(root: Path) -> Case:
    made = Distributed(root)
    made.instances["images"].pop()
    made.save()
    return f"refcoco:{root}@val", f"The image_id 25 of annotation 103 in {made.instances_path} is"


def a_missing_split(root: Path) -> Case:
    made = Distributed(root).save()
    return f"refcoco:{root}@testC", f"There is no split 'testC' in {made.refs_path}."


def ids_that_stand_twice(root: Path) -> Case:
    FORMATS["coco"].write(root, draw_images(3, 1))
    path = root / "train" / "instances.json"
    data = json.loads(path.read_text())
    data["annotations"][-1]["id"] = 1
    path.write_text(json.dumps(data))
    return f"coco:{root}@train", f"The annotation id 1 occurs twice in {path}."


def a_line_cut_in_half(root: Path) -> Case:
    path = FORMATS["jsonl"].write(root, draw_images(3, 1)) / "train" / "metadata.jsonl"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][: len(lines[2]) // 2]]))
    return f"jsonl:{root}@train", f"Line 3 of {path} is not whole JSON."


@pytest.mark.parametrize(
    "case",
    [
        a_refs_file_that_runs_code,
        a_panoptic_png_of_the_wrong_size,
        a_segment_without_a_pixel,
        an_annotation_without_an_image,
        a_missing_split,
        ids_that_stand_twice,
        a_line_cut_in_half,
    ],
)
def test_a_fault_is_named_and_nothing_is_written(
    case: Callable[[Path], Case], tmp_path: Path
) -> None:
    text, message = case(tmp_path / "in")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "in").rglob("*")}
    with pytest.raises(DataError) as caught:
        convert_source(text, tmp_path / "out")
    assert caught.value.asked.startswith(message)
    assert list(tmp_path.glob("out/*")) == []
    after: dict[Path, Any] = {p: p.stat().st_mtime_ns for p in (tmp_path / "in").rglob("*")}
    assert after == before
