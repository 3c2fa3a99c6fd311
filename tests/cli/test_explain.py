"""`flmm explain`, through the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_core.cli import main
from flmm_core.data.drawn.scenes import make_scene, paint

Capture = pytest.CaptureFixture[str]
TEXT = "a blue square, a ring"


@pytest.fixture
def photo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A drawn scene that EXIF data turn upright."""
    monkeypatch.chdir(tmp_path)
    image = Image.fromarray(paint(make_scene((9, 1)))[0])
    exif = Image.Exif()
    exif[0x0112] = 6
    image.transpose(Image.Transpose.ROTATE_90).save("photo.png", exif=exif)
    return "photo.png"


def explained(photo: str, *more: str) -> int:
    return main(["explain", photo, "--backbone", "qwen", *more])


def test_a_text_is_explained_without_a_head(photo: str, capsys: Capture) -> None:
    mask = np.zeros((112, 176), np.uint8)
    mask[40:70, 50:80] = 255
    Image.fromarray(mask).save("mask.png")
    more = ["--word", "blue square", "--point", "66,57", "--box", "0,0,9,9", "--mask", "mask.png"]
    assert explained(photo, "--text", TEXT, *more, "--no-sinks", "--json") == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["backbone"], said["text"], said["image"]) == ("qwen", TEXT, [176, 112])
    assert len(said["heads"]) == 3
    assert [one["word"] for one in said["words"]] == ["a", "blue", "square", ",", "a", "ring"]
    assert list(said["words_at"]) == ["point 66,57", "box 0,0,9,9", "mask mask.png"]
    ranked = said["words_at"]["mask mask.png"]
    assert {look["text"] for look in ranked} == {"a", "blue", "square", "ring"}
    assert ranked == sorted(ranked, key=lambda look: -look["share"])
    names = [Path(file).name for file in said["files"]]
    assert names[-1] == "word-002-blue-square.png"
    assert all(Path(file).stat().st_size for file in said["files"])
    assert Image.open(said["files"][-1]).width >= 176
    written = json.loads(Path("explanation/explanation.json").read_text())
    assert written["words"] == said["words"]


def test_an_answer_is_explained_and_told(photo: str, capsys: Capture) -> None:
    question = "Please give me a description of the image."
    more = ["--layer", "-1", "--attention-head", "0", "--point", "5,5"]
    assert explained(photo, "--ask", question, *more, "--output", "out") == 0
    out = capsys.readouterr().out
    answer = json.loads(Path("out/explanation.json").read_text())
    assert answer["asked"]
    assert answer["prompt"] == question
    lines = out.splitlines()
    assert lines[0] == answer["text"].strip()
    assert [line.split()[0] for line in lines[2:4]] == [w["word"] for w in answer["words"][:2]]
    assert "point 5,5: which words look here" in out
    assert len(list(Path("out").glob("word-*.png"))) == sum(
        any(map(str.isalnum, word["word"])) for word in answer["words"]
    )


BACKBONE = ["--backbone", "qwen"]


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        ([*BACKBONE], 2, "Give either --text or --ask."),
        ([*BACKBONE, "--text", "a", "--ask", "b"], 2, "Give either --text or --ask."),
        ([*BACKBONE, "--text", " "], 2, "--text is empty."),
        ([*BACKBONE, "--ask", ""], 2, "--ask is empty."),
        (["--text", "a"], 2, "Give either --backbone or --head."),
        ([*BACKBONE, "--head", "run", "--text", "a"], 2, "Give either --backbone or --head."),
        (["--backbone", "qwenn", "--text", "a"], 2, "Unknown backbone 'qwenn'. Did you mean"),
        ([*BACKBONE, "--text", "a", "--by", "learned"], 2, "There is no learned map without"),
        ([*BACKBONE, "--text", "a", "--attention-head", "1"], 2, "--attention-head needs a layer."),
        ([*BACKBONE, "--ask", "a", "--prompt", "b"], 2, "--ask and --prompt contradict each other"),
        ([*BACKBONE, "--text", "a", "--point", "1"], 2, "'1' is not of the form X,Y."),
        ([*BACKBONE, "--text", "a", "--box", "1,2,3"], 2, "'1,2,3' is not of the form X0,Y0,X1,Y1"),
        ([*BACKBONE, "--text", "a", "--mask", "none.png"], 3, "The image none.png cannot be read."),
        ([*BACKBONE, "--text", "a", "--point", "176,0"], 2, "The point 176,0 is outside the image"),
        (
            [*BACKBONE, "--text", "a ring", "--word", "rign"],
            2,
            "The word 'rign' is not in the text",
        ),
        ([*BACKBONE, "--text", "a", "--layer", "4"], 2, "The model has no layer 4."),
        ([*BACKBONE, "--text", "a", "--top-k", "99"], 2, "99 attention heads cannot be chosen."),
    ],
)
def test_mistakes_are_told_in_a_sentence(
    arguments: list[str], code: int, problem: str, photo: str, capsys: Capture
) -> None:
    assert main(["explain", photo, *arguments]) == code
    out, err = capsys.readouterr()
    assert problem in err
    assert "Traceback" not in out + err
    assert not Path("explanation").exists()


@pytest.mark.parametrize(
    ("kept", "problem"),
    [(0, "is empty."), (4, "is not an image."), (2000, "is broken or cut off.")],
)
def test_a_damaged_image_is_told(kept: int, problem: str, photo: str, capsys: Capture) -> None:
    Path(photo).write_bytes(Path(photo).read_bytes()[:kept])
    assert explained(photo, "--text", "a ring") == 3
    assert problem in capsys.readouterr().err.splitlines()[0]
