"""What the page's server keeps, offers and refuses, without a browser."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from shutil import copytree

import pytest
from PIL import Image
from starlette.testclient import TestClient

from flmm_core.errors import WeightsError
from flmm_core.pipeline.grounder import Grounder
from flmm_core.serving.page import held
from flmm_core.serving.page.examples import SCENES, draw, examples
from flmm_core.serving.page.held import HeldImage, ImageShelf, Shelf
from flmm_core.serving.page.models import Models
from flmm_core.serving.page.routes import demo_app
from flmm_core.serving.page.studio import Studio


def png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    shelf: Shelf[int] = Shelf(2)
    first, second = shelf.put(1), shelf.put(2)
    assert shelf.get(first) == 1
    third = shelf.put(3)
    assert [shelf.get(name) for name in (first, second, third)] == [1, None, 3]


def test_images_are_forgotten_by_their_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(held, "HELD_PIXELS", 1000)
    shelf = ImageShelf(100)
    names = [shelf.put(HeldImage.of(Image.new("RGB", (20, 20)))) for _ in range(3)]
    assert [shelf.get(name) is not None for name in names] == [False, True, True]
    large = shelf.put(HeldImage.of(Image.new("RGB", (50, 50))))
    assert list(shelf.kept) == [large]


@pytest.mark.parametrize("size", [(4000, 30), (1, 3000), (640, 480)])
def test_a_browser_gets_no_more_than_it_shows(size: tuple[int, int]) -> None:
    image = HeldImage.of(Image.new("RGB", size, "blue"))
    shown = Image.open(io.BytesIO(image.shown))
    assert max(shown.size) <= held.SHOWN
    assert max(shown.size) == min(max(size), held.SHOWN)
    assert image.image.size == size


def test_given_heads_come_first_then_runs_the_newest_first(trained: Path, tmp_path: Path) -> None:
    for age, name in enumerate(["newest", "older", "oldest"]):
        run = copytree(trained, tmp_path / name / "best")
        os.utime(run / "model.safetensors", (1e9 - age, 1e9 - age))
    (tmp_path / "broken" / "best").mkdir(parents=True)
    (tmp_path / "broken" / "best" / "model.safetensors").write_bytes(b"no")
    models = Models([str(tmp_path / "oldest")], tmp_path)
    heads = [Path(choice.head).name for choice in models.choices if choice.head]
    assert heads == ["oldest", "newest", "older"]
    assert models.selected == models.choices[0].id
    with pytest.raises(WeightsError, match="There is no trained head"):
        Models([str(tmp_path / "nowhere")], tmp_path)


def test_without_a_head_bare_backbones_are_offered(tmp_path: Path) -> None:
    models = Models((), tmp_path / "runs")
    assert not models.has_head
    assert {choice.backbone for choice in models.choices} == {
        "auto",
        "deepseek_vl",
        "llava_next",
        "qwen",
    }


def test_examples_are_the_same_everywhere() -> None:
    drawn = examples()
    assert draw(1, *SCENES[0]) == drawn[0]
    assert all(len(set(example.phrases)) == len(example.phrases) >= 3 for example in drawn)


@pytest.fixture(scope="module")
def client(studio: Studio) -> Iterator[TestClient]:
    app = demo_app(studio, only_hosts=["localhost"])
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def test_every_response_forbids_what_is_from_elsewhere(client: TestClient) -> None:
    for path in ("/", "/static/main.js", "/page/state", "/nowhere", "/page/images/x"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'self'" in policy
        assert "unsafe" not in policy


def test_other_pages_and_other_names_of_the_server_are_refused(client: TestClient) -> None:
    assert client.get("/page/state").status_code == 200
    foreign = {"sec-fetch-site": "cross-site"}
    assert client.get("/page/state", headers=foreign).status_code == 403
    assert client.get("/page/state", headers={"host": "evil.example"}).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "said"),
    [
        ("ground", {"model": "head-0", "image": "gone", "phrases": ["a"]}, "no longer in memory"),
        ("ground", {"model": "other", "image": None, "phrases": ["a"]}, "no model 'other'"),
        ("ground", {"model": "bare-qwen", "image": None, "phrases": ["a"]}, "no masks"),
        ("ground", {"model": "head-0", "image": None, "phrases": ["a", " "]}, "is empty"),
        ("ground", {"model": "head-0", "image": None, "phrases": []}, "at least 1"),
    ],
)
def test_what_cannot_be_done_is_said(
    client: TestClient, path: str, body: dict[str, object], said: str
) -> None:
    sent = client.post("/page/images", files={"image": ("a.png", png((40, 30)))}).json()
    assert (sent["width"], sent["height"]) == (40, 30)
    body["image"] = body["image"] or sent["id"]
    answer = client.post(f"/page/{path}", json=body)
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]


def test_a_head_that_is_damaged_is_said_when_it_is_chosen(trained: Path, tmp_path: Path) -> None:
    run = copytree(trained, tmp_path / "run")
    with (run / "model.safetensors").open("ab") as file:
        file.write(b"more")
    app = demo_app(Studio(Models((), tmp_path)))
    with TestClient(app) as client:
        assert client.get("/page/state").json()["selected"] == "head-0"
        answer = client.post("/page/models/head-0")
    assert answer.status_code == 500
    assert "They changed since they were written" in answer.json()["error"]["message"]


@pytest.mark.parametrize("model", ["head-0", "bare-qwen"])
def test_an_answer_comes_in_pieces_and_then_whole(client: TestClient, model: str) -> None:
    sent = client.post("/page/images", files={"image": ("a.png", png((90, 60)))}).json()
    turns = [{"role": "user", "text": "What is there?"}]
    for question in ("And more?", "And else?"):
        body = {"model": model, "image": sent["id"], "messages": turns}
        answer = client.post("/page/chat", json=body)
        assert answer.headers["content-type"].startswith("text/event-stream")
        events = [block.split("\ndata: ") for block in answer.text.split("\n\n")[:-1]]
        names = [name.removeprefix("event: ") for name, _ in events]
        *pieces, whole = [json.loads(data) for _, data in events]
        assert names == ["text"] * len(pieces) + ["answer"]
        assert len(pieces) > 1
        assert "".join(piece["text"] for piece in pieces) == whole["text"]
        assert len(whole["found"]) == len(whole["spans"])
        assert bool(whole["found"]) == (model == "head-0")
        for span, found in zip(whole["spans"], whole["found"], strict=True):
            assert whole["text"][span["start"] : span["end"]] == found["phrase"]
        said = {"role": "assistant", "text": whole["text"]}
        turns += [said, {"role": "user", "text": question}]


def test_a_conversation_that_is_none_is_refused(client: TestClient) -> None:
    sent = client.post("/page/images", files={"image": ("a.png", png((90, 60)))}).json()
    turns = [{"role": "assistant", "text": "Hello."}]
    body = {"model": "head-0", "image": sent["id"], "messages": turns}
    answer = client.post("/page/chat", json=body)
    assert "event: error" in answer.text
    assert "no user's message" in answer.text


def test_a_model_is_loaded_when_it_is_chosen_and_one_is_kept(studio: Studio) -> None:
    names = [choice.id for choice in studio.models.choices]
    assert {"head-0", "bare-qwen"} <= set(names)
    first = studio.models.load("head-0")
    assert studio.models.load("head-0") is first
    bare = studio.models.load("bare-qwen")
    assert bare.grounder is None
    assert studio.models.load("head-0") is not first


def test_phrases_of_one_image_run_it_once(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Image.Image] = []
    look = Grounder.look
    monkeypatch.setattr(
        Grounder, "look", lambda self, image: (looked.append(image), look(self, image))[1]
    )
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]
    names = [studio.take(image)["id"] for image in images]
    for name, phrases in zip((0, 0, 1, 0), (["a ring"], ["a", "b"], ["c"], ["d"]), strict=True):
        found = studio.ground("head-0", names[name], phrases)["found"]
        assert [part["phrase"] for part in found] == phrases
    assert [images.index(image) for image in looked] == [0, 1, 0]
    studio.models.load("bare-qwen")
    studio.ground("head-0", names[0], ["a ring"])
    assert len(looked) == 4
