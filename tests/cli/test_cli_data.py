"""`flmm data` on what a model cannot take, and on what is faulty."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.cli import main
from flmm_core.data.protocols import OBJECTS_PER_CAPTION
from flmm_core.data.sources import open_source, open_sources

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(*lines: dict[str, Any]) -> str:
    """A metadata.jsonl here with gray images of the sizes that its lines say."""
    for line in lines:
        Image.new("RGB", (line["width"], line["height"]), "gray").save(line["file_name"])
    Path("metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return "jsonl:."


def line(name: str, width: int, height: int, *phrases: str) -> dict[str, Any]:
    square = [[[0, 0, 2, 0, 2, 2, 0, 2]]]
    objects = {"phrases": [[words] for words in phrases], "segmentation": square * len(phrases)}
    return {"file_name": name, "width": width, "height": height, "objects": objects}


@pytest.mark.parametrize(
    ("backbone", "reason"), [("qwen", "aspect ratio"), ("llava_next", "too thin")]
)
def test_what_a_model_cannot_take_is_found_before_a_run(
    backbone: str, reason: str, capsys: Capture
) -> None:
    long = "the pole " * 2000
    source = write(
        line("a.png", 60, 40, "the pole"),
        line("b.png", 2, 1000, "the pole"),
        line("c.png", 60, 40, "the pole", long),
    )
    assert main(["data", "check", source]) == 0
    assert "left out" not in capsys.readouterr().out
    assert main(["data", "check", source, "--backbone", backbone]) == 0
    thin, cut, last = capsys.readouterr().out.splitlines()
    assert thin.startswith("left out: jsonl/b.png: ")
    assert reason in thin
    assert cut.startswith("left out: jsonl/c.png: ")
    assert len(cut) < 600
    assert last == f"{source}: no faults; 3 images, 4 objects, 4 phrases; 2 left out"


def test_a_model_of_a_check_needs_a_backbone(capsys: Capture) -> None:
    assert main(["data", "check", write(line("a.png", 9, 9, "a dot")), "--model", "tiny"]) == 2
    assert "--backbone" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["size", "no image", "missing"])
def test_convert_refuses_what_check_refuses(kind: str, capsys: Capture) -> None:
    source = write(line("a.png", 60, 40, "a box"), line("b.png", 60, 40, "a box"))
    if kind == "size":
        Image.new("RGB", (61, 40)).save("b.png")
    elif kind == "no image":
        Path("b.png").write_bytes(b"<html>")
    else:
        Path("b.png").unlink()
    assert main(["data", "check", source]) == 3
    found = capsys.readouterr().out.splitlines()[0].removeprefix("1. ")
    assert main(["data", "convert", source, "out", "--max-skipped", "100%"]) == 3
    assert capsys.readouterr().err.startswith(f"flmm: {found}\n")
    assert not Path("out").exists()


def test_convert_leaves_out_as_much_as_is_allowed(capsys: Capture) -> None:
    lines = [line(f"{number}.png", 60, 40, "a box", "a ring") for number in range(5)]
    lines[2]["objects"]["segmentation"][1] = [[1, 2, 3, 4]]
    source = write(*lines)
    assert main(["data", "convert", source, "out"]) == 3
    assert capsys.readouterr().err.splitlines() == [
        f"flmm: More of '{source}' cannot be used than --max-skipped 1% allows.",
        "Left out: 1 of 10 objects. The last is object 1 of 2.png: it covers no pixel",
        "Repair the data (`flmm data check`, with --backbone, lists it), or raise --max-skipped.",
    ]
    assert main(["data", "convert", source, "out", "--max-skipped", "10%"]) == 0
    assert len(open_source("jsonl:out@train")) == 9
    assert main(["data", "check", "jsonl:out@train"]) == 0
    assert "left out" not in capsys.readouterr().out


def test_many_objects_get_several_training_captions() -> None:
    count = 3 * OBJECTS_PER_CAPTION + 5
    phrases = [f"cell {number}" for number in range(count)]
    source = write(line("a.png", 90, 90, *phrases), line("b.png", 90, 90, "a lone cell"))
    samples = open_sources([source], "flmm-paper", split_captions=True)
    *parts, lone = samples
    assert [phrase.text for part in parts for phrase in part.phrases] == phrases
    sizes = [len(part.phrases) for part in parts]
    assert len(sizes) == 4
    assert max(sizes) - min(sizes) <= 1
    assert len({part.name for part in parts}) == len(parts)
    assert lone.name == "jsonl/b.png"
    (whole, _) = open_source(source, "flmm-paper")  # scores of the protocol stay comparable
    assert len(whole.phrases) == count
    extents = np.array([samples.extent(index) for index in range(len(samples))])
    assert extents[:-1, 2].max() < len(whole.caption) / 3


@pytest.mark.parametrize("command", [["eval", "run"], ["benchmark", "--backbone", "qwen"]])
def test_a_limit_that_is_none(command: list[str], capsys: Capture) -> None:
    output = ["--output", "out"] if command[0] == "benchmark" else []
    assert main([*command, *output, "--max-skipped", "some"]) == 2
    assert capsys.readouterr().err == (
        "flmm: --max-skipped must be a number of items (20) or a share of the source (1%, 0.5%),"
        " not 'some'.\n"
    )
