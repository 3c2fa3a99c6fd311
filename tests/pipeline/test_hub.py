"""Heads on the hub: pushed by huggingface_hub's own client to a stand-in, and loaded from it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard, constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError
from safetensors.torch import load_file, save_file

from flmm_core.cli import main
from flmm_core.errors import FlmmError, RunError, UsageError, WeightsError
from flmm_core.files import write_json
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import find_head, read_info
from flmm_core.pipeline.hub import explain
from flmm_core.pipeline.publish import publishable
from flmm_core.plugins import load_backbones, load_class
from tests.flows import fresh_grounder
from tests.hub_server import READ_ONLY, TOKEN, Hub, Repo, running_hub
from tests.models import picture

CLOSED = "http://127.0.0.1:9"
FILES = {"README.md", "config.json", "model.safetensors"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    with running_hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    made = fresh_grounder(Recipe("qwen", base_channels=4, refiner="none"))
    made.info = replace(made.info, model=made.backbone.identity())
    return made


@pytest.fixture(scope="module")
def run(grounder: Grounder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder on a machine whose paths nobody is to see."""
    folder = tmp_path_factory.mktemp("secret-place") / "run"
    data = ["refcoco:/secret/coco@val", "jsonl:/secret/me@home/own.jsonl"]
    facts = {"steps": 7, "data": data, "protocol": "standard", "note": "/secret/note.txt"}
    grounder.save_pretrained(folder / "last", **facts)
    score = {"ciou": 0.51239, "miou": 0.4, "masks": 12}
    found = {"protocol": "standard", "coarse": {**score, "ciou": 0.3}, "refined": score}
    write_json(folder / "summary.json", {"evaluations": {"refcoco:/secret/coco@testA": found}})
    write_json(folder / "environment.json", {"packages": {"torch": "2.9", "gone": None}})
    settings = {"steps": 7, "learning_rate": 1e-4, "output": "/secret/runs", "data": data}
    settings |= {"refiner_weights": "/secret/weights.pth", "head": {"pool": "max"}}
    (folder / "config.yaml").write_text(json.dumps(settings))
    return folder


def test_a_pushed_head_is_the_same_head(hub: Hub, grounder: Grounder) -> None:
    url = grounder.push_to_hub("me/head", private=True, message="First")
    repo = hub.repos["me/head"]
    assert url.startswith(f"{hub.url}/me/head/commit/")
    assert (repo.private, repo.messages, repo.heads["main"].keys()) == (True, ["First"], FILES)
    loaded = Grounder.from_pretrained("me/head")
    image = picture(48, 48)
    ours, theirs = (each.ground(image, ["it"]).logits for each in (grounder, loaded))
    assert torch.equal(ours, theirs)
    assert loaded.info.recipe == grounder.info.recipe


def test_revisions_and_pull_requests(hub: Hub, grounder: Grounder) -> None:
    grounder.push_to_hub("me/head")
    repo = hub.repos["me/head"]
    first = repo.sha("main")
    repo.heads["v1"] = dict(repo.heads["main"])
    proposed = grounder.push_to_hub("me/head", create_pr=True, message="Better")
    assert proposed == f"{hub.url}/me/head/discussions/1"
    assert set(repo.heads) == {"main", "v1", "refs/pr/1"}
    repo.heads["main"] = {"README.md": b"moved"}
    for source, revision in (("me/head@v1", None), ("me/head", "v1"), ("me/head", first)):
        assert read_info(find_head(source, revision=revision)).recipe == grounder.info.recipe
    with pytest.raises(WeightsError, match=r"has no config.json and no model.safetensors"):
        find_head("me/head")


def test_nothing_of_the_machine_is_uploaded(
    hub: Hub, run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["push", str(run), "me/head", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not hub.asked
    assert main(["push", str(run), "me/head", "--license", "mit"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed[:-1]] == sorted(FILES)
    assert listed[-1].startswith(hub.url)
    files = hub.repos["me/head"].heads["main"]
    assert files.keys() == FILES
    for content in (shown.encode(), *files.values()):
        assert b"secret" not in content
        assert str(tmp_path).encode() not in content
        assert TOKEN.encode() not in content
    assert files["model.safetensors"] == (run / "last" / "model.safetensors").read_bytes()
    facts = read_info(find_head("me/head")).facts
    assert facts["data"] == ["refcoco@val", "jsonl"]
    assert facts["note"] == "note.txt"


def test_the_card_is_read_by_the_hubs_own_reader(hub: Hub, run: Path) -> None:
    assert main(["push", str(run), "me/head", "--license", "mit"]) == 0
    card = ModelCard(hub.repos["me/head"].heads["main"]["README.md"].decode())
    data = card.data
    assert (data.license, data.library_name, data.datasets) == ("mit", "flmm", ["jsonl", "refcoco"])
    first, second = data.eval_results
    assert (first.dataset_type, first.dataset_split) == ("refcoco", "testA")
    assert (first.metric_type, first.metric_name) == ("ciou", "cIoU")
    assert (first.metric_value, first.metric_config) == (0.5124, "protocol standard")
    assert second.metric_type == "miou"
    for row in ("| steps | 7 |", "| head.pool | max |", "| torch | 2.9 |", "0.3000", "weights.pth"):
        assert row in card.text


def test_the_cards_snippet_runs_as_it_is(
    hub: Hub, grounder: Grounder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    grounder.push_to_hub("me/head")
    card = hub.repos["me/head"].heads["main"]["README.md"].decode()
    monkeypatch.chdir(tmp_path)
    picture(48, 48).save("photo.jpg")
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    exec(compile(code, "README.md", "exec"), {})
    assert Path("overlay.png").is_file()


def test_a_real_model_is_named_with_its_license(grounder: Grounder) -> None:
    from flmm_core.pipeline.model_card import Evidence, model_card

    sam: dict[str, Any] = {"refiner": "sam", "refiner_options": {"size": "vit_l"}}
    changes: dict[str, Any] = {"adapter": "owner/lora@v2", "quantize": "4bit"}
    recipe = replace(grounder.info.recipe, model="3b", **changes, **sam)
    card = ModelCard(model_card("me/head", replace(grounder.info, recipe=recipe), Evidence()))
    assert card.data.base_model == ["Qwen/Qwen2.5-VL-3B-Instruct", "owner/lora"]
    for text in (
        "`Qwen/Qwen2.5-VL-3B-Instruct`: Qwen Research (non-commercial)",
        "`sam`: Apache-2.0",
        'refiner_weights="sam_vit_l_0b3195.pth"',
        "in 4 bits",
    ):
        assert text in card.text


@pytest.mark.parametrize("given", [None, "facebook/sam2.1-hiera-large", "/secret/sam2-mine"])
def test_a_refiners_weights_are_named_by_hub_id_or_without_their_folder(
    grounder: Grounder, tmp_path: Path, given: str | None
) -> None:
    from flmm_core.pipeline.model_card import model_card
    from flmm_core.training.published import evidence_of

    options: dict[str, Any] = {"refiner": "sam2", "refiner_options": {"size": "hiera_l"}}
    recipe = replace(grounder.info.recipe, **options)
    (tmp_path / "config.yaml").write_text(json.dumps({"refiner_weights": given}))
    card = model_card("me/head", replace(grounder.info, recipe=recipe), evidence_of(tmp_path))
    named, where = ("facebook/sam2.1-hiera-large", "from the hub")
    if given and "secret" in given:
        named, where = "sam2-mine", "in the current folder"
    assert f'refiner_weights="{named}"' in card
    assert f"`{named}`, {where}.\n" in card
    assert "secret" not in card


@pytest.mark.parametrize(
    ("recipe", "given", "left"),
    [
        ({"model": "/data/qwen"}, {}, None),
        ({"model": "models/qwen"}, {}, None),
        ({"model": "/data/qwen"}, {"model": "owner/model"}, "owner/model"),
        ({"adapter": "/data/lora"}, {}, None),
        ({"adapter": "/data/lora"}, {"adapter": "owner/lora"}, "tiny"),
        ({"model": "owner/model", "revision": "v2"}, {}, "owner/model"),
    ],
)  # fmt: skip
def test_a_model_that_others_would_not_find(
    grounder: Grounder, recipe: Any, given: Any, left: str | None, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "qwen").mkdir(parents=True)
    info = replace(grounder.info, recipe=replace(grounder.info.recipe, **recipe))
    if left is None:
        with pytest.raises(UsageError, match=r"by a path of this machine.*\n.*\n.*on the hub: --"):
            publishable(info, **given)
    else:
        assert publishable(info, **given).recipe.model == left


def test_more_than_a_head_is_not_uploaded(hub: Hub, grounder: Grounder, tmp_path: Path) -> None:
    from flmm_core.pipeline.head_folder import write_info

    folder = grounder.save_pretrained(tmp_path / "head")
    state = load_file(folder / "model.safetensors")
    save_file(state | {"model.visual.x": torch.ones(2)}, folder / "model.safetensors")
    write_info(folder, grounder.info)
    assert main(["push", str(folder), "me/head"]) == WeightsError.exit_code
    assert main(["push", str(folder), "no-owner"]) == UsageError.exit_code
    assert main(["push", str(tmp_path / "nothing"), "me/head"]) == UsageError.exit_code
    assert not hub.repos


# --- what goes wrong -----------------------------------------------------------------------------


def refusal(kind: type[FlmmError], act: Any) -> str:
    with pytest.raises(kind) as error:
        act()
    assert type(error.value) is kind
    assert not str(error.value).startswith("HTTP")
    return str(error.value)


def test_pushes_that_the_hub_refuses(
    hub: Hub, grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def push(**how: Any) -> str:
        return refusal(RunError, lambda: grounder.push_to_hub("me/head", **how))

    assert "no permission for it (403): You don't have the rights" in push(token=READ_ONLY)
    assert "does not accept the token (401)" in push(token="hf_wrong")
    hub.faults = {"preupload": 501}
    assert "a fault of its own (501)" in push()
    hub.faults = {"PUT /lfs": 403}
    assert "no permission for it (403)" in push()
    hub.faults = {}
    assert "no such repository or branch on the hub (404)" in push(revision="missing")
    said = refusal(RunError, lambda: grounder.push_to_hub("me/other", create_pr=True))
    assert "(404)" in said
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE is set.\nUnset it." in push()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    assert "The hub cannot be reached" in push()
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    assert "has no token of the hub.\nLog in" in push()


def test_heads_that_cannot_be_fetched(
    hub: Hub, grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(source: str, **how: Any) -> str:
        said = refusal(WeightsError, lambda: Grounder.from_pretrained(source, **how))
        assert said.startswith(f"The head '{source}' cannot be fetched from the hub.\n")
        return said

    grounder.push_to_hub("me/head")
    assert "no such repository on the hub" in fetch("me/nothing")
    assert "not the revision that was asked for" in fetch("me/head@v9")
    hub.repos["me/head"].gated = True
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    said = fetch("me/head")
    assert "Access to it is gated.\nAccept the conditions on its page" in said
    assert f"{hub.url}/me/head" in said
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    assert "does not accept the token (401)" in fetch("me/head")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "HF_HUB_OFFLINE forbids" in fetch("me/head")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", CLOSED)
    assert "the hub cannot be reached.\nCheck the network" in fetch("me/head")


def test_a_download_that_breaks_off_is_told_and_repeated(
    hub: Hub, grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    grounder.push_to_hub("me/head")
    hub.faults = {"model.safetensors": "half"}
    said = refusal(WeightsError, lambda: find_head("me/head"))
    assert "the connection broke" in said
    hub.faults = {}
    assert (find_head("me/head") / "model.safetensors").is_file()


def test_a_full_disk_is_told(hub: Hub, grounder: Grounder, monkeypatch: pytest.MonkeyPatch) -> None:
    grounder.push_to_hub("me/head")

    class Full(io.FileIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device", self.name)

    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda self, mode="r", *a, **k: (
            Full(str(self), mode.replace("b", ""))
            if "incomplete" in self.name
            else opened(self, mode, *a, **k)
        ),
    )
    said = refusal(RunError, lambda: find_head("me/head"))
    assert "No space left on device.\nFree some space" in said


def test_a_gated_model_behind_a_head_is_told(
    hub: Hub, grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repos["owner/vlm"] = Repo(gated=True, heads={"main": {"config.json": b"{}"}})
    spec = load_backbones().get("qwen")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    for how in ({}, {"revision": "v3"}):
        with contextlib.suppress(KeyError):
            hub.repos["owner/vlm"].gated = not how
        said = refusal(
            WeightsError, lambda how=how: load_class(spec).load(spec, "owner/vlm", **how)
        )
        assert said.startswith("The model 'owner/vlm' cannot be downloaded from the Hugging Face")
        assert ("is gated" if not how else "not the revision") in said
        assert how or f"its page ({hub.url}/owner/vlm) and log in" in said


def test_a_gated_repository_is_linked_whatever_its_error_knows(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Errors of huggingface_hub 1.5 have no name of the repository."""
    hub.repos["owner/vlm"] = Repo(gated=True, heads={"main": {"config.json": b"{}"}})
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", "/nowhere/token")
    for fetch in (hf_hub_download, lambda name, file: snapshot_download(name, cache_dir=tmp_path)):
        with pytest.raises(GatedRepoError) as caught:
            fetch("owner/vlm", "config.json")
        caught.value.__dict__.pop("repo_id", None)
        assert f"its page ({hub.url}/owner/vlm) and" in explain(caught.value)[1]
