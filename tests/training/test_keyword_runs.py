"""Runs that learn which words to ground, alone or beside the masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from flmm_core.cli import main
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.errors import FlmmError
from flmm_core.pipeline.build import build_head, load_refiner, recipe_of
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.types import VlmShape
from tests.cached import Runs, weights


@pytest.fixture(scope="module")
def runs(random_twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("keywords")
    images = draw_images(4, seed=8, split="train", extras=("narration",))
    drawn = FORMATS["png"].write(folder / "narrated", images)
    made = Runs(random_twin, drawn, folder)
    made.source = f"png:{drawn}@train"
    made.settings |= {"data": [made.source], "steps": 2, "batch_size": 2, "pictures": 0}
    made.settings |= {"refiner": "none", "eval_data": [made.source]}
    return made


@pytest.fixture(scope="module")
def former(runs: Runs) -> Path:
    return runs.train("former")


@pytest.fixture(scope="module")
def alone(runs: Runs, former: Path) -> Path:
    """A selector alone, on a head that had none."""
    return of_selector(runs, former, "alone")


def of_selector(runs: Runs, former: Path, name: str, **settings: Any) -> Path:
    more = {"head.keywords": True, "train": ["keywords"], "init_head": str(former)}
    return runs.train(name, weight_decay=0.5, **more, **settings)


def head_of(run: Path) -> dict[str, Any]:
    return load_file(run / "last" / "model.safetensors")


def test_a_selector_is_trained_on_a_head_that_stays_as_it_is(
    runs: Runs, former: Path, alone: Path
) -> None:
    before, after = head_of(former), head_of(alone)
    own = {name for name in after if name.startswith("keywords.")}
    assert own == {"keywords.readout.weight", "keywords.readout.bias"}
    assert after.keys() - own == before.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    figures = [json.loads(line) for line in (alone / "metrics.jsonl").read_text().splitlines()]
    assert all(row["keywords"] > 0 for row in figures if "loss" in row)
    same, still = (
        head_of(of_selector(runs, former, f"alone-at-{rate}", learning_rate=rate))
        for rate in (runs.settings["learning_rate"], 1e-12)
    )
    assert all(np.array_equal(same[name], after[name]) for name in own)  # begun alike
    assert not any(np.array_equal(still[name], after[name]) for name in own)


def test_scores_are_in_the_summary_and_in_flmm_eval(
    runs: Runs, former: Path, alone: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = json.loads((alone / "summary.json").read_text())
    scores = summary["keywords"]
    assert scores["captions"] == 4
    assert 0.8 < scores["rules_f1"] <= 1
    assert summary["evaluations"][runs.source]["keywords"] == scores
    assert main(["eval", str(alone), "--data", runs.source, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["data"][runs.source]["keywords"] == scores
    assert "keywords" not in json.loads((former / "summary.json").read_text())


def test_a_grounder_loads_it(former: Path, alone: Path) -> None:
    grounder = Grounder.from_pretrained(alone, check=False)
    assert grounder.head.keywords is not None
    trained = head_of(alone)["keywords.readout.weight"]
    assert np.array_equal(grounder.head.keywords.readout.weight.detach().numpy(), trained)
    assert grounder.head.layer_weights() is None
    assert Grounder.from_pretrained(former, check=False).head.keywords is None


def test_masks_and_keywords_are_trained_together_in_parts_of_a_step(runs: Runs) -> None:
    whole = runs.train("whole", head__keywords=True, exact=True)
    parts = runs.train("parts", head__keywords=True, exact=True, accumulate=2)
    kept = runs.train("kept", head__keywords=True, cache_memory=1.0)
    assert weights(kept) == weights(whole)  # features that stay in memory have captions, too
    one, two = head_of(whole), head_of(parts)
    for name, value in one.items():
        if name.startswith("keywords."):
            assert value.any()
            np.testing.assert_allclose(value, two[name], atol=1e-4)


def test_what_a_head_begins_with_is_the_same_with_and_without_a_selector(runs: Runs) -> None:
    states = []
    for keywords in (False, True):
        recipe = recipe_of(runs.config(head__keywords=keywords)[0])
        torch.manual_seed(0)
        head = build_head(recipe, VlmShape(2, 2, 8, ("image",)), load_refiner(recipe)[1])
        states.append(head.state_dict())
    assert states[1].keys() - states[0].keys()
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_what_cannot_teach_keywords_is_told_before_anything_is_loaded(
    runs: Runs, former: Path, drawn: Path
) -> None:
    refused: dict[str, dict[str, Any]] = {
        "read piece by piece": {"caption_mode": "pieces"},
        "cannot be learned from the cache": {"cache": runs.folder},
        "no narrations to learn keywords from": {"data": [f"refcoco:{drawn}@train"]},
        "has no keyword selector to begin with": {"train": ["presence"], "init_head": str(former)},
    }
    for message, settings in refused.items():
        with pytest.raises(FlmmError, match=message):
            runs.train("refused", **{"head.keywords": True, **settings})
