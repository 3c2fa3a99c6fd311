"""The moving average of the weights is what a run validates, keeps and ends with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from flmm_core import Grounder
from flmm_core.errors import WeightsError
from flmm_core.evaluation.evaluate import evaluate_run
from flmm_core.training.optimizer_file import STATE
from tests.cached import Runs, weights
from tests.stopping import StopAt

DECAY = 0.15  # reached after two steps: 1/10, 2/11, ...


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    return Runs(random_twin, drawn, tmp_path)


def of_step(run: Path, step: int) -> dict[str, Any]:
    return load_file(run / "checkpoints" / f"step-{step}" / "model.safetensors")


def test_the_kept_head_is_the_average_of_what_a_run_without_it_trains(runs: Runs) -> None:
    plain = runs.train("plain", save_every=1, keep=9)
    run = runs.train("run", ema=DECAY, val_data=[runs.source], eval_data=[runs.source])
    average = of_step(plain, 1)
    for step in (2, 3, 4):
        decay = min(DECAY, step / (step + 9))
        now = of_step(plain, step)
        average = {name: decay * average[name] + (1 - decay) * now[name] for name in now}
    kept, last = of_step(run, 4), of_step(plain, 4)
    assert not all(np.array_equal(kept[name], last[name]) for name in kept)
    for name, value in average.items():
        np.testing.assert_allclose(kept[name], value, rtol=1e-5, atol=1e-7, err_msg=name)
    # What is scored is the head that others load.
    summary = json.loads((run / "summary.json").read_text())
    for given in (run, run / "best"):
        scores = evaluate_run(given, [runs.source])["data"][runs.source]
        assert scores["refined"]["ciou"] == summary["refined"]["ciou"]


def test_a_resumed_run_is_bit_identical(runs: Runs) -> None:
    more = {"ema": DECAY, "val_data": [runs.source]}
    whole = runs.train("whole", **more)
    with pytest.raises(KeyboardInterrupt):
        runs.train("cut", **more, progress=StopAt("Training", 3))
    torch.rand(7)
    cut = runs.train("cut", resume=True, **more)
    assert weights(cut) == weights(whole)
    logs = [(run / "metrics.jsonl").read_text().splitlines() for run in (cut, whole)]
    losses, others = ([json.loads(row).get("loss") for row in rows] for rows in logs)
    assert losses == others


def test_trained_weights_that_are_missing_or_do_not_fit_are_named(runs: Runs) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.train("run", ema=DECAY, progress=StopAt("Training", 2))
    last = runs.folder / "run" / "last"
    whole = torch.load(last / STATE, weights_only=True)
    name = next(iter(whole["weights"]))
    (last / "optimizer.json").unlink()
    before = weights(runs.folder / "run")
    for damaged, found in (
        ({}, f"missing {name}"),
        ({name: torch.full_like(whole["weights"][name], torch.nan)}, "not finite"),
        (None, "It has no weights beside their average."),
    ):
        others = {k: v for k, v in whole["weights"].items() if k != name}
        given = None if damaged is None else others | damaged
        torch.save({**whole, "weights": given}, last / STATE)
        with pytest.raises(WeightsError) as error:
            runs.train("run", ema=DECAY, resume=True)
        first, second, _ = str(error.value).splitlines()
        assert first == f"The trained weights in '{last.resolve()}' cannot be used."
        assert found in second
    assert weights(runs.folder / "run") == before


def test_a_head_is_loaded_without_what_a_resumed_run_needs(runs: Runs) -> None:
    run = runs.train("run", ema=DECAY, steps=2)
    (run / "last" / STATE).unlink()
    loaded = Grounder.from_pretrained(run).head.state_dict()
    for name, value in of_step(run, 2).items():
        np.testing.assert_array_equal(loaded[name].numpy(), value)
