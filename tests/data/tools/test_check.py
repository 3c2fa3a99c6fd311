"""`flmm data check`: every fault at once, by file, line and field."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS, writable_formats
from flmm_core.data.tools.check import check_source
from flmm_core.data.tools.preview import IGNORED
from flmm_core.errors import UsageError
from flmm_core.painting import mask_color
from tests.data.conftest import Distributed
from tests.data.formats.shared.test_plain_pickle import Bomb


def asked(report: Any) -> list[str]:
    return [fault.asked for fault in report.faults]


def test_a_sound_source_has_no_fault(tmp_path: Path) -> None:
    FORMATS["grefcoco"].write(tmp_path, draw_images(4, 3, extras=("pair", "absent")))
    report = check_source(f"grefcoco:{tmp_path}@train")
    assert report.faults == report.skipped == ()
    assert (report.images, report.absent) == (4, 4)
    assert report.objects == report.phrases > 8


def test_every_fault_of_a_refcoco_folder(tmp_path: Path) -> None:
    made = Distributed(tmp_path / "coco")
    made.instances["annotations"][0]["segmentation"] = [[1, 2, 3]]
    made.instances["annotations"].append(made.instances["annotations"][2])
    made.refs[2] |= {"ann_id": 555}
    made.refs[1]["sentences"] = []
    made.refs.append(made._ref(9, 102, 9, "val", ["fine"]))
    made.refs.append(made._ref(9, 102, 9, "val", ["again"]))
    made.refs.append(made._ref(10, 103, 25, "val", ["people"]))
    made.save()
    (made.images / "COCO_train2014_000000000025.jpg").unlink()
    report = check_source(f"refcoco:{made.root}@val")
    assert asked(report) == [
        f"The ref id 9 occurs twice in {made.refs_path}.",
        f"The annotation id 103 occurs twice in {made.instances_path}.",
        f"Polygon 0 of annotation 101 in {made.instances_path} is not a list of points.",
        f"The ann_id 555 of ref 2 of {made.refs_path} is unknown.",
        f"The image COCO_train2014_000000000025.jpg of {made.instances_path} is missing.",
    ]
    assert [(one.name, one.reason) for one in report.skipped] == [
        (f"ref 1 of {made.refs_path}", "it has no sentence")
    ]
    assert (report.images, report.objects) == (1, 1)


def test_every_fault_of_a_jsonl_file(tmp_path: Path, drawn_images: Any) -> None:
    path = FORMATS["jsonl"].write(tmp_path, drawn_images) / "train" / "metadata.jsonl"
    first, third = map(json.loads, path.read_text().splitlines())
    broken = json.loads(json.dumps(first))
    broken["objects"]["segmentation"][0]["counts"] = "~"
    broken["objects"]["phrases"][1] = [""]
    wrong = {**third, "width": "16"}
    lines = [json.dumps(broken), json.dumps(first)[:40], json.dumps(wrong), json.dumps(third)]
    path.write_text("\n".join([*lines, json.dumps(third)]))
    report = check_source(f"jsonl:{path}")
    assert asked(report) == [
        f"The RLE of object 0 on line 1 of {path} is broken.",
        f"Object 1 on line 1 of {path} has [''] for 'phrases'.",
        f"Line 2 of {path} is not whole JSON.",
        f"Line 3 of {path} has '16' for 'width'.",
        f"The image images/3.png occurs twice in {path}.",
    ]
    assert (report.images, report.objects) == (1, 1)


def test_images_and_masks_are_read_whole(tmp_path: Path) -> None:
    FORMATS["png"].write(tmp_path, draw_images(4, 3))
    first, second, *_ = sorted(tmp_path.glob("images/train2017/*.png"))
    first.write_bytes(first.read_bytes()[:100])
    Image.new("RGB", (5, 5)).save(second)
    png = sorted(tmp_path.glob("annotations/panoptic_segmentation/train2017/*.png"))[2]
    with Image.open(png) as stored:
        Image.fromarray(np.zeros_like(np.asarray(stored))).save(png)
    report = check_source(f"png:{tmp_path}@train", previews=9, output=tmp_path / "drawn")
    assert asked(report)[:2] == [
        f"The image {first} is broken or cut off.",
        f"The image {second} does not have the size that its annotations were made for.",
    ]
    assert all(text.endswith(f"has no pixel in {png}.") for text in asked(report)[2:])
    assert len(report.faults) > 3
    assert [p.name for p in (tmp_path / "drawn").iterdir()] == ["1-train_plain_000003.png"]


def test_a_file_that_would_run_code_is_one_fault_and_is_not_run(tmp_path: Path) -> None:
    made = Distributed(tmp_path / "coco").save_refs([Bomb(tmp_path / "was-run")])
    report = check_source(f"refcoco:{made.root}@val")
    (fault,) = report.faults
    assert fault.asked == (
        f"The file {made.refs_path} is not a plain data file: it asks for the Python object "
        f"'{os.system.__module__}.system'."
    )
    assert not (tmp_path / "was-run").exists()


@pytest.mark.parametrize("form", writable_formats())
def test_a_missing_split_is_a_fault_of_every_format(form: str, tmp_path: Path) -> None:
    FORMATS[form].write(tmp_path, draw_images(2, 3))
    (fault,) = check_source(f"{form}:{tmp_path}@nowhere").faults
    assert "nowhere" in fault.asked
    assert str(tmp_path) in str(fault)
    assert "train" in str(fault) or form == "coco"


def test_the_first_images_are_drawn(tmp_path: Path) -> None:
    FORMATS["reasonseg"].write(tmp_path / "in", draw_images(3, 3, extras=("ignore",)))
    out = tmp_path / "out"
    check_source(f"reasonseg:{tmp_path / 'in'}@train", previews=2, output=out)
    drawn = sorted(out.iterdir())
    assert [p.name for p in drawn] == [
        "1-train_plain_000000_0.png",
        "2-train_plain_000000_1.png",
    ]
    for path in drawn:
        with Image.open(path) as sheet:
            pixels = np.asarray(sheet.convert("RGB")).astype(int)
        for color in (mask_color(0), IGNORED):
            assert (np.abs(pixels - color).sum(axis=2) < 150).sum() > 200


def test_an_unknown_source_is_a_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Unknown data source"):
        check_source("refcoko:x@val")
