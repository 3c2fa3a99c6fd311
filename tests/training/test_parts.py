"""Parts of a head are trained alone, and a run begins with a trained head."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from flmm_core.errors import ConfigError, UsageError, WeightsError
from flmm_core.pipeline.head_folder import read_info
from tests.cached import Runs, weights
from tests.stopping import StopAt

NONE = 1e-30
"""A learning rate that changes no weight."""


@pytest.fixture(scope="module")
def runs(random_twin: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(random_twin, drawn, tmp_path_factory.mktemp("parts"))
    made.settings |= {"pictures": 0, "steps": 2, "batch_size": 2}
    return made


@pytest.fixture(scope="module")
def former(runs: Runs) -> Path:
    return runs.train("former")


def head_of(run: Path) -> dict[str, Any]:
    return load_file(run / "last" / "model.safetensors")


def changed(one: Path, two: Path) -> set[str]:
    """The parts with a weight that differs."""
    before, after = head_of(one), head_of(two)
    assert before.keys() == after.keys()
    return {
        name.partition(".")[0]
        for name, value in before.items()
        if not np.allclose(value, after[name], rtol=0, atol=1e3 * NONE)
    }


@pytest.mark.parametrize(
    ("train", "parts"),
    [
        (["head"], {"mask_head", "presence"}),
        (["presence"], {"presence"}),
        (["text,sam"], {"text_prompts", "refiner"}),
    ],
)
def test_only_these_parts_are_trained(
    runs: Runs, former: Path, train: list[str], parts: set[str]
) -> None:
    run = runs.train("-".join(train), train=train, init_head=str(former), ema=0.5, weight_decay=0.5)
    assert changed(former, run) == parts
    summary = json.loads((run / "summary.json").read_text())
    sizes = [value.size for name, value in head_of(run).items() if name.partition(".")[0] in parts]
    assert summary["trainable_parameters"] <= sum(sizes)  # SAM has some that are never trained
    if "refiner" not in parts:
        assert summary["trainable_parameters"] == sum(sizes)


def test_all_parts_by_name_are_a_run_like_any_other(runs: Runs, former: Path) -> None:
    assert weights(runs.train("all", train=["head", "text", "sam"])) == weights(former)


def test_a_run_begins_with_the_given_head_and_is_resumed_without_it(
    runs: Runs, former: Path
) -> None:
    same = runs.train("same", init_head=str(former), learning_rate=NONE)
    assert changed(former, same) == set()
    assert read_info(same / "last").facts["initial_head"] == str(former)
    copy = runs.folder / "copy"
    shutil.copytree(former / "last", copy)
    whole = runs.train("tuned", init_head=str(copy))
    with pytest.raises(KeyboardInterrupt):
        runs.train("cut", init_head=str(copy), progress=StopAt("Training", 1))
    shutil.rmtree(copy)
    assert weights(runs.train("cut", init_head=str(copy), resume=True)) == weights(whole)


def test_a_head_of_other_settings_is_refused_before_a_model_is_loaded(
    runs: Runs, former: Path
) -> None:
    with pytest.raises(UsageError) as error:
        runs.train(
            "other", init_head=str(former), model="some/model", head__base_channels=8,
            head__pool="max", refiner_options__box=False,
        )  # fmt: skip
    told = str(error.value)
    assert f"The head in '{former}' was built with other settings than this run." in told
    for line in (
        "--head-base-channels: 4 there, 8 here",
        "--head-pool: mean there, max here",
        "--refiner-option box: True there, False here",
    ):
        assert f"  {line}\n" in told
    with pytest.raises(WeightsError, match="There is no trained head in 'no/such/place'"):
        runs.train("other", init_head="no/such/place")
    assert not (runs.folder / "other").exists()


def test_a_head_of_another_model_is_refused(runs: Runs, former: Path, random_twin: Path) -> None:
    twin = runs.folder / "twin"
    shutil.copytree(random_twin, twin)
    (file,) = twin.glob("*.safetensors")
    tensors = load_file(file)
    save_file({name: value + 0.01 for name, value in tensors.items()}, file, {"format": "pt"})
    more: dict[str, Any] = {"init_head": str(former), "model": str(twin)}
    with pytest.raises(WeightsError, match="was trained behind another model"):
        runs.train("other", **more)
    assert changed(former, runs.train("forced", force=True, learning_rate=NONE, **more)) == set()


@pytest.mark.parametrize(
    ("train", "part"),
    [("sam", "mask head"), ("head", "text prompts"), ("presence,text", "mask head")],
)
def test_what_would_stay_random_is_named(runs: Runs, train: str, part: str) -> None:
    with pytest.raises(UsageError) as error:
        runs.train("other", train=[train])
    first, second, _ = str(error.value).splitlines()
    assert first == f"--train {train} leaves the {part} untrained."
    assert second == "A new head has random weights there."


def test_nothing_to_train_and_unknown_parts_are_told(runs: Runs, former: Path) -> None:
    plain = runs.train("plain", refiner="none")
    with pytest.raises(UsageError, match="--train text leaves nothing to be trained"):
        runs.train("other", refiner="none", init_head=str(plain), train="text")
    with pytest.raises(ConfigError, match="--train: 'sam' is no part of the head; its parts: head"):
        runs.config(refiner="none", train="head,sam")
    with pytest.raises(ConfigError, match="--train: nothing is no part of the head"):
        runs.config(train=[])
