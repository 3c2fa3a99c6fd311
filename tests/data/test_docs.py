"""docs/data.md: its commands run, its examples are read, its sources are all there are."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_core.cli import main
from flmm_core.data import rle
from flmm_core.data.formats import FORMATS
from flmm_core.data.formats.shared.panoptic import segment_color
from flmm_core.data.tools.check import check_source

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
EXAMPLES = re.split(r"(?=<!-- read: )", PAGE)[1:]


def test_the_commands_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    block = re.findall(r"```sh\n(.*?)```", PAGE, re.S)[0]
    lines = re.findall(r"^flmm (.*)$", block, re.M)
    assert len(lines) == 5
    for line in lines:
        assert main(shlex.split(line)) == 0, line
    assert "jsonl:lines@train: no faults; 3 images" in capsys.readouterr().out
    assert len(list(Path("seen").iterdir())) == 2


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_read(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in re.findall(r"<!-- file: (.*?) -->\n```\w+\n(.*?)```", example, re.S):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    for name, width, height in re.findall(r"<!-- image: (.*) (\d+)x(\d+) -->", example):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (int(width), int(height))).save(name)
    for name, width, height in re.findall(r"<!-- white: (.*) (\d+)x(\d+) -->", example):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (int(width), int(height)), 255).save(name)
    for name in re.findall(r"<!-- segments: (.*) -->", example):
        panoptic = json.loads(Path("annotations/panoptic_val2017.json").read_text())
        pixels = np.zeros((10, 12, 3), dtype=np.uint8)
        for segment in panoptic["annotations"][0]["segments_info"]:
            x, y, width, height = segment["bbox"]
            pixels[y : y + height, x : x + width] = segment_color(segment["id"])
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(name)
    (source,) = re.findall(r"<!-- read: (.*) -->", example)
    report = check_source(source)
    assert report.faults == report.skipped == ()
    assert report.images == 1
    assert report.objects > report.absent


def test_every_source_is_described() -> None:
    assert len(EXAMPLES) == 10
    for name in FORMATS:
        assert f"`{name}" in PAGE, name


def test_the_pixels_of_a_run_length_code_run_down_the_columns() -> None:
    code = rle.to_rle({"size": [10, 12], "counts": [60, 20, 40]}, 10, 12)
    assert rle.bbox(code) == (6, 0, 2, 10)
