"""`flmm chat`: one question, a conversation, JSON, files, and what it refuses."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from PIL import Image

from flmm_core.cli import main
from flmm_core.data.drawn.scenes import make_scene, paint
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from tests.flows import fresh_grounder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Path:
    grounder = fresh_grounder(Recipe("qwen", base_channels=4, enlarge_to=16, refiner="none"))
    return grounder.save_pretrained(tmp_path_factory.mktemp("heads") / "head")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("images") / "scene.png"
    Image.fromarray(paint(make_scene((1, 2)))[0]).save(path)
    return path


def run(*arguments: object) -> int:
    return main(["chat", *map(str, arguments), "--device", "cpu"])


def test_one_question(head: Path, image: Path, tmp_path: Path, capsys: Capture) -> None:
    grounder = Grounder.from_pretrained(head, device="cpu", check=False)
    answer = grounder.chat(image, "What is it?")
    assert len(answer) > 0
    output = tmp_path / "out"
    assert run(image, "What is it?", "--head", head, "--output", output) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"{answer.text}\n")
    assert all(span.phrase in shown.partition("\n")[2] for span in answer)
    assert json.loads((output / "answer.json").read_text()) == answer.to_json()
    assert {path.name for path in output.iterdir()} == {
        "answer.json", "overlay.png", "result.json",
        *(f"mask-{number + 1}.png" for number in range(len(answer))),
    }  # fmt: skip

    assert run(image, "What is it?", "--head", head, "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"image": str(image), "question": "What is it?", **answer.to_json()}


def test_a_conversation(
    head: Path, image: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("What is it?\n\nAnd then?\n"))
    assert run(image, "--head", head, "--json") == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert second["messages"][: len(first["messages"])] == first["messages"]
    assert second["messages"][-1]["content"][0]["text"] == second["text"]
    grounder = Grounder.from_pretrained(head, device="cpu", check=False)
    again = grounder.chat(image, second["messages"][:-1])
    assert again.text == second["text"]


def test_ctrl_c_ends_it(
    head: Path, image: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(io.StringIO):
        def readline(self, *args: object) -> str:  # type: ignore[override]
            raise KeyboardInterrupt

    monkeypatch.setattr("sys.stdin", Interrupted())
    assert run(image, "--head", head) == 0
    assert capsys.readouterr().out == ""


def test_without_a_head_it_talks(image: Path, head: Path, capsys: Capture) -> None:
    grounder = Grounder.from_pretrained(head, device="cpu", check=False)
    assert run(image, "What is it?", "--backbone", "qwen") == 0
    assert capsys.readouterr().out == f"{grounder.chat(image, 'What is it?').text}\n"
    asked = image, "What is it?", "--backbone", "qwen", "--json"
    assert run(*asked, "--temperature", 2, "--seed", 3) == 0
    drawn = json.loads(capsys.readouterr().out)["text"]
    how = {"do_sample": True, "temperature": 2.0, "seed": 3}
    assert drawn == grounder.chat(image, "What is it?", **how).text  # type: ignore[arg-type]


def test_a_second_look(head: Path, image: Path, capsys: Capture) -> None:
    asked = image, "What is it?", "--head", head, "--zoom", "--look-at", "red cross", "--compare"
    assert run(*asked, "--json", "--no-check") == 0
    told = json.loads(capsys.readouterr().out)
    grounder = Grounder.from_pretrained(head, device="cpu", check=False)
    thought = grounder.think(image, "What is it?", look_at="red cross")
    assert told["text"] == thought.text
    assert told["crop"] == (None if thought.box is None else list(thought.box))


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "There is no model to talk to."),
        (["--backbone", "qwen", "--zoom"], 2, "--zoom needs a trained head."),
        (["--backbone", "qwen", "--output", "out"], 2, "--output needs a trained head."),
        (["--head", "run", "--backbone", "qwen"], 2, "contradict each other"),
        (["--head", "run", "--compare"], 2, "--compare says how to zoom."),
        (["--backbone", "qwenn"], 2, "Did you mean 'qwen'?"),
        (["--head", "no-such-run"], 3, "no-such-run"),
    ],
)
def test_what_is_refused(
    image: Path, options: list[str], code: int, said: str, capsys: Capture
) -> None:
    assert run(image, "What?", *options) == code
    assert said in capsys.readouterr().err


def test_an_image_that_is_missing(capsys: Capture) -> None:
    assert run("no-such.png", "What?", "--backbone", "qwen") == 3
    assert "no-such.png" in capsys.readouterr().err
