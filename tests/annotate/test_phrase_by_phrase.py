"""Phrases of one image, one after the other: the files of all of them asked together."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_core.cli import main
from flmm_core.data.drawn.scenes import make_scene, paint
from flmm_core.pipeline.build import Recipe
from tests.flows import fresh_grounder

Capture = pytest.CaptureFixture[str]
Ground = Callable[..., int]
PHRASES = ("a red ring", "the star", "the blue square")


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    grounder = fresh_grounder(Recipe("qwen", base_channels=4, enlarge_to=16))
    return grounder.save_pretrained(tmp_path_factory.mktemp("heads") / "head")


@pytest.fixture
def ground(head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ground:
    """Runs the command with what is typed."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(paint(make_scene((1, 2)))[0]).save("scene.png")

    def run(*arguments: str, typed: str | io.TextIOBase = "") -> int:
        stdin = io.StringIO(typed) if isinstance(typed, str) else typed
        monkeypatch.setattr("sys.stdin", stdin)
        return main(["ground", "scene.png", *arguments, "--head", str(head), "--device", "cpu"])

    return run


EVERYTHING = [word for kind in ("overlay", "masks", "attention", "coco", "labelme")
              for word in ("--save", kind)]  # fmt: skip


def test_the_files_are_those_of_all_phrases_together(ground: Ground, capsys: Capture) -> None:
    lines = "a red ring\n\n  \n  the star \nthe blue square"
    assert ground("--output", "asked", *EVERYTHING, typed=lines) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[:2] for line in shown] == [
        [str(Path("asked", f"mask-{number}.png")), phrase]
        for number, phrase in enumerate(PHRASES, start=1)
    ]
    assert ground(*PHRASES, "--output", "given", *EVERYTHING) == 0
    found, expected = (
        {path.relative_to(folder): path for path in Path(folder).rglob("*") if path.is_file()}
        for folder in ("asked", "given")
    )
    assert found.keys() == expected.keys()
    assert len(found) == 11
    for name, path in found.items():
        if path.suffix == ".png":  # a logit of about 0 may have the other sign
            one, other = (np.asarray(Image.open(each), np.int16) for each in (path, expected[name]))
            assert one.shape == other.shape, name
            assert (abs(one - other) > 3).mean() < 0.003, name
    asked, given = (json.loads(Path(f, "result.json").read_text()) for f in ("asked", "given"))
    for one, other in zip(asked.pop("found"), given.pop("found"), strict=True):
        assert one.keys() == other.keys()
        for key in ("phrase", "mask", "there"):
            assert one[key] == other[key]
        assert one["score"] == pytest.approx(other["score"], abs=1e-4)
        assert one["area"] == pytest.approx(other["area"], abs=3)
    assert asked == given


def test_one_json_object_a_phrase_and_less_than_before(ground: Ground, capsys: Capture) -> None:
    assert ground(*PHRASES) == 0
    capsys.readouterr()
    assert ground("--json", typed="the star\na red ring\n") == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(one["phrase"], one["mask"]) for one in told] == [
        ("the star", "mask-1.png"),
        ("a red ring", "mask-2.png"),
    ]
    assert told == json.loads(Path("out/result.json").read_text())["found"]
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "mask-1.png",
        "mask-2.png",
        "overlay.png",
        "result.json",
    ]


def test_what_is_wrong_with_a_phrase_costs_only_that_phrase(
    ground: Ground, capsys: Capture
) -> None:
    long = "red " * 3000
    assert ground("--json", typed=f"the star\n{long}\na red ring\n") == 0
    shown = capsys.readouterr()
    told = [json.loads(line)["phrase"] for line in shown.out.splitlines()]
    assert told == ["the star", "a red ring"]
    assert "flmm: " in shown.err
    assert len(json.loads(Path("out/result.json").read_text())["found"]) == 2


def test_a_line_that_is_not_utf_8_costs_only_itself(ground: Ground, capsys: Capture) -> None:
    lines = io.BytesIO(b"the star\n\xff\xfe ring\na red ring\n")
    assert ground("--json", typed=io.TextIOWrapper(lines, "utf-8", errors="strict")) == 0
    shown = capsys.readouterr()
    told = [json.loads(line)["phrase"] for line in shown.out.splitlines()]
    assert told == ["the star", "a red ring"]
    assert "is not Unicode text" in shown.err


class Interrupted(io.StringIO):
    """Ctrl-C while the second phrase is typed."""

    def __init__(self) -> None:
        super().__init__("the star\na red ring\n")
        self.lines = 0

    def readline(self, *_: int) -> str:  # type: ignore[override]
        self.lines += 1
        if self.lines == 2:
            raise KeyboardInterrupt
        return super().readline()


def test_ctrl_c_ends_it_and_what_was_found_stays(ground: Ground, capsys: Capture) -> None:
    assert ground(typed=Interrupted()) == 0
    assert Path("out/mask-1.png").exists()
    assert not Path("out/mask-2.png").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "There is no phrase to segment."),
        (("--together",), "--together needs all phrases at once."),
        (("--keep-absent", "--min-probability", "0.5"), "contradict each other"),
    ],
)
def test_what_is_refused(
    ground: Ground, arguments: tuple[str, ...], said: str, capsys: Capture
) -> None:
    assert ground(*arguments) == 2
    assert said in capsys.readouterr().err
    assert not Path("out").exists()
