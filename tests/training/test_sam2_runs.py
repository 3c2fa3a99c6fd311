"""Runs with SAM 2: with and without a cache the same head, used by every command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors import safe_open

from flmm_core import Grounder
from flmm_core.cli import main
from flmm_core.feature_cache.store import Store
from tests.cached import Runs, weights
from tests.heads import small_sam2_model
from tests.models import picture


@pytest.fixture(scope="module")
def runs(random_twin: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("sam2")
    small_sam2_model().save_pretrained(folder / "weights")
    runs = Runs(random_twin, drawn, folder)
    runs.settings |= {"refiner": "sam2:tiny", "refiner_weights": str(folder / "weights")}
    return runs


@pytest.fixture(scope="module")
def run(runs: Runs) -> Path:
    return runs.train("exact", exact=True, cache_memory=0)


def test_heads_from_memory_and_from_a_cache_are_the_exact_runs(runs: Runs, run: Path) -> None:
    assert weights(runs.train("kept", cache_memory=1.0)) == weights(run)
    forecast = runs.build()
    store = Store(runs.cache)
    assert weights(runs.train("cached", cache=runs.cache)) == weights(run)
    (image, *_) = (store.features(key).image for key in store.samples)
    assert image is not None
    assert [tuple(each.shape) for each in image.tensors] == [(16, 4, 4), (2, 16, 16), (4, 8, 8)]
    assert forecast.embeddings == len(store.images) * 4 * sum(x.numel() for x in image.tensors)


def test_a_head_keeps_what_is_trained_and_which_refiner_it_is(run: Path) -> None:
    with safe_open(run / "last" / "model.safetensors", "pt") as file:
        names = {name.removeprefix("refiner.") for name in file.keys() if "refiner." in name}  # noqa: SIM118
    whole = small_sam2_model().state_dict()
    parts = ("prompt_encoder.", "mask_decoder.", "shared_image_embedding.")
    assert names == {x for x in whole if x.startswith(parts) and ".conv_s" not in x}
    recipe = json.loads((run / "last" / "config.json").read_bytes())["recipe"]
    assert recipe["refiner"] == "sam2"
    assert recipe["refiner_options"]["size"] == "tiny"


def test_every_command_uses_the_head(
    runs: Runs, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--refiner-weights", str(runs.folder / "weights")]
    grounder = Grounder.from_pretrained(run, refiner_weights=given[1])  # as a model card has it
    result = grounder.ground(picture(60, 40), ["it", "that"])
    assert result.masks.shape == (2, 40, 60)
    again = tmp_path / "saved"
    grounder.save_pretrained(again)
    image = tmp_path / "image.png"
    picture(60, 40).save(image)
    assert main(["ground", str(image), "it", "--head", str(again), *given,
                 "--output", str(tmp_path / "masks")]) == 0  # fmt: skip
    assert (tmp_path / "masks" / "mask-1.png").is_file()
    capsys.readouterr()
    assert main(["eval", str(again), "--data", runs.source, "--json", *given]) == 0
    assert "refined" in capsys.readouterr().out
    boxes = ["--method", "box+sam", "--method-data", runs.source]
    assert main(["eval", str(again), "--data", runs.source, "--json", *given, *boxes]) == 0
    assert main(["verify", str(run), *given]) == 0


def test_bf16_trains_the_same_parts(runs: Runs) -> None:
    run = runs.train(
        "bf16", steps=2, save_every=2, precision="bf16", dtype="float32", refiner_options__half=True
    )
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").open()]
    assert all(loss > 0 for loss in losses if loss is not None)


def test_weights_that_are_missing_are_refused_before_anything_is_loaded(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["train", "--backbone", "qwen", "--refiner", "sam2:hiera_b+", "--steps", "1"]
    assert main([*wrong, "--output", str(runs.folder / "never")]) == 3
    said = capsys.readouterr().err
    assert "SAM 2 'hiera_b+' needs its weights." in said
    assert "facebook/sam2.1-hiera-base-plus" in said
    assert not (runs.folder / "never").exists()
