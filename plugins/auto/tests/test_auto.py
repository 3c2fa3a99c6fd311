"""Backbone `auto` against the named backbones, and on families that no plugin knows."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file

from flmm_auto import SPEC
from flmm_auto.backbone import AutoBackbone
from flmm_auto.families import LISTED
from flmm_core import Backbone, FlmmError, RunError, WeightsError, load_backbones
from flmm_core.cli import main
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.pipeline.backbone.fingerprint import take_fingerprint
from flmm_core.pipeline.backbone.identity import ModelIdentity, differences
from flmm_core.plugins import load_class
from flmm_core.testing.probes import CAPTION, picture
from recipes.families import toy_config
from recipes.families.refused import REFUSED
from tests.examples import example

PLUGINS = Path(__file__).parents[2]
BUILT_IN = ("qwen", "deepseek_vl", "llava_next")
ANY = {"allow_unlisted": True}


def tiny(name: str) -> str:
    return str(PLUGINS / name / f"flmm_{name}" / "tiny")


@pytest.fixture(autouse=True, scope="module")
def _cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLMM_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def gemma3(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return example("gemma3").make_tiny(tmp_path_factory.mktemp("gemma3"))


@pytest.mark.parametrize("name", BUILT_IN)
def test_it_reads_what_the_named_backbone_reads(name: str) -> None:
    spec = load_backbones().get(name)
    auto = AutoBackbone.load(SPEC, tiny(name))
    named: Backbone = load_class(spec).load(spec, tiny(name))
    assert auto.view_names == named.view_names
    for hw in ((240, 320), (60, 240)):
        ours, theirs = (each.prepare(picture(*hw), CAPTION) for each in (auto, named))
        assert ours.tensors.keys() == theirs.tensors.keys()
        for key, value in ours.tensors.items():
            assert torch.equal(value, theirs.tensors[key])
        for view, other in zip(ours.views, theirs.views, strict=True):
            assert torch.equal(view.token_index, other.token_index)
            assert view.image_box == pytest.approx(other.image_box, abs=1e-9)
        traces = [each.trace(each.collate([one])) for each, one in ((auto, ours), (named, theirs))]
        assert torch.equal(traces[0][0].attention, traces[1][0].attention)
        assert torch.equal(traces[0][0].hidden, traces[1][0].hidden)


@pytest.fixture
def unlisted(gemma3: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model of a family that was not tried."""
    monkeypatch.delitem(LISTED, "gemma3")
    return gemma3


def test_a_family_that_was_not_tried_must_be_allowed(unlisted: Path) -> None:
    with pytest.raises(WeightsError) as error:
        AutoBackbone.load(SPEC, str(unlisted))
    assert error.value.asked == (
        "Backbone 'auto' has not been tried with models of the type 'gemma3'."
    )
    assert "--options allow_unlisted=true" in error.value.repair
    assert error.value.exit_code == 3


def test_it_says_what_it_found_and_looks_once(
    unlisted: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with caplog.at_level(logging.INFO, "flmm_core"):
        AutoBackbone.load(SPEC, str(unlisted), options=ANY)
    assert (
        f"The model '{unlisted}' is of the type 'gemma3'. It was measured, for 6 sizes of images, "
        "that its image tokens lie in the view 'image' (6 x 6 tokens). Some layers attend only to "
        "the latest tokens. The type 'gemma3' has not been tried before."
    ) in caplog.messages
    looked = []
    monkeypatch.setattr(
        "flmm_core.pipeline.backbone.places.misplaced_views", lambda *_: looked.append(1) or []
    )
    again = AutoBackbone.load(SPEC, str(unlisted), options=ANY)
    assert not looked, "that the tokens are where they should be is known"
    take_fingerprint(again)


def test_weights_that_show_nothing_of_the_image_are_refused(gemma3: Path, tmp_path: Path) -> None:
    shutil.copytree(gemma3, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    (name,) = (name for name in weights if "mm_input_projection" in name)
    weights[name].zero_()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(RunError, match="are not where they should be") as error:
        AutoBackbone.load(SPEC, str(tmp_path), options=ANY)
    assert "640 x 480 pixels, view 'image': when a part of the image is repaint" in str(error.value)


def test_a_head_keeps_the_geometry_and_names_what_moved() -> None:
    backbone = AutoBackbone.load(SPEC, tiny("llava_next"))
    page = (PLUGINS.parent / "docs" / "auto.md").read_text()
    told = backbone.found().partition(" The type has been tried")[0]  # with another version
    assert told.replace(tiny("llava_next"), "...") in " ".join(page.split())
    identity = backbone.identity()
    assert identity.geometry["640 x 480"]["coarse"] == (7, 7, 0, 0, 1, 1)
    kept = json.loads(json.dumps(asdict(identity)))
    reading = TypeAdapter(ModelIdentity)
    assert differences(reading.validate_json(json.dumps(kept)), identity) == []
    kept["geometry"]["640 x 480"]["fine"][2] += 0.01
    (told,) = differences(reading.validate_json(json.dumps(kept)), identity)
    assert told == (
        "measured geometry of images of 640 x 480 pixels, view 'fine': head 10 x 14 at (0.034, "
        "0.000, 0.976, 1.000), model 10 x 14 at (0.024, 0.000, 0.976, 1.000)"
    )


HEADS = BUILT_IN if os.environ.get("FLMM_ALL_HEADS") else BUILT_IN[1:2]
"""`FLMM_ALL_HEADS=1 pytest plugins/auto -k head` trains behind all of them."""


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_it_gives_the_head_that_the_named_backbone_gives(name: str, tmp_path: Path) -> None:
    drawn = FORMATS["refcoco"].write(tmp_path / "drawn", draw_images(4, seed=5, kinds=("plain",)))
    data = [f"--{part}data=refcoco:{drawn}@train" for part in ("", "val-", "eval-")]
    small = ["--steps=3", "--batch-size=2", "--head-base-channels=16", "--head-enlarge-to=32"]
    heads = []
    for backbone in (name, "auto"):
        run = ["train", f"--backbone={backbone}", f"--model={tiny(name)}", *data, *small]
        assert main([*run, f"--output={tmp_path / backbone}"]) == 0
        heads.append(load_file(tmp_path / backbone / "last" / "model.safetensors"))
    assert heads[0].keys() == heads[1].keys()
    for key, value in heads[0].items():
        torch.testing.assert_close(heads[1][key], value, atol=1e-6, rtol=1e-5)
    kept = json.loads((tmp_path / "auto" / "last" / "config.json").read_text())
    assert kept["model"]["geometry"]["640 x 480"]


@pytest.mark.parametrize("make", REFUSED[:3], ids=lambda make: make.__name__)
def test_what_cannot_be_proved_is_refused(make: Any, tmp_path: Path) -> None:
    made = make()
    toy_config(made.config, len(made.processor.tokenizer)).save_pretrained(tmp_path)
    made.processor.save_pretrained(tmp_path)
    with pytest.raises(FlmmError) as error:
        AutoBackbone.load(SPEC, str(tmp_path), options=ANY)
    assert error.value.exit_code in (2, 3)
    assert error.value.found
