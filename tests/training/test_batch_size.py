"""`--batch-size auto` does a step in as many parts as memory needs, and repeats itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from flmm_core.cli import main
from flmm_core.config import RunConfig
from flmm_core.errors import ConfigError, RunError
from flmm_core.loader.dataset import ObservedFeatures
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.progress import LineProgress
from tests.cached import Runs, weights
from tests.stopping import StopAt

Patch = pytest.MonkeyPatch


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    made = Runs(random_twin, drawn, tmp_path)
    made.settings |= {"pictures": 0, "steps": 2, "refiner": "none", "batch_size": "auto"}
    return made


def settings_of(run: Path) -> tuple[Any, Any]:
    found = yaml.safe_load((run / "config.yaml").read_text())
    return found["batch_size"], found["accumulate"]


def room_for(patch: Patch, most: int, error: Exception | None = None) -> list[int]:
    """Let the head's forward pass run out of memory beyond some samples; returns those asked."""
    forward, asked = MaskHead.forward, list[int]()

    def limited(self: MaskHead, maps: Any) -> Any:
        asked.append(len(maps))
        if len(maps) > most:
            raise error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return forward(self, maps)

    patch.setattr(MaskHead, "forward", limited)
    return asked


def test_parts_are_halved_until_they_fit(runs: Runs, monkeypatch: Patch) -> None:
    said: list[str] = []
    with monkeypatch.context() as patch:
        asked = room_for(patch, 3)
        run = runs.train("auto", steps=1, progress=LineProgress(said.append))
    assert asked == [8, 4, 2, 2, 2, 2, 2, 2]  # two trials that fit, and the step
    assert settings_of(run) == (8, 4)
    given = "Batch size 8, 2 at a time (--accumulate 4)"
    assert f"{given}; on a CPU, memory is not measured" in said
    told = runs.train("told", steps=1, batch_size=8, accumulate=4)
    assert weights(run) == weights(told)


def test_a_run_goes_on_with_what_it_found(runs: Runs, monkeypatch: Patch) -> None:
    room_for(monkeypatch, 3)
    whole = runs.train("whole")
    with pytest.raises(KeyboardInterrupt):
        runs.train("cut", progress=StopAt("Training", 1))
    cut = runs.folder / "cut"
    assert settings_of(cut) == (8, 4)
    asked = room_for(monkeypatch, 2)
    assert main(["train", "--resume", "--output", str(cut)]) == 0
    assert asked == [2, 2, 2, 2]  # the second step, and nothing was tried
    assert weights(cut) == weights(whole)


def test_it_may_be_asked_for_anew_on_another_machine(runs: Runs, monkeypatch: Patch) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.train("run", progress=StopAt("Training", 1))
    room_for(monkeypatch, 4)
    assert settings_of(runs.train("run", resume=True)) == (8, 2)


def test_torch_itself_runs_out_of_memory(runs: Runs, monkeypatch: Patch) -> None:
    features = ObservedFeatures.features

    def greedy(self: ObservedFeatures, batch: Any, **more: Any) -> Any:
        found = features(self, batch, **more)
        torch.empty(1 if len(found) < 3 else 1 << 60, dtype=torch.uint8)
        return found

    monkeypatch.setattr(ObservedFeatures, "features", greedy)
    assert settings_of(runs.train("run", steps=1)) == (8, 4)


def test_a_single_sample_that_does_not_fit_is_an_error(runs: Runs, monkeypatch: Patch) -> None:
    room_for(monkeypatch, 0)
    with pytest.raises(RunError) as error:
        runs.train("run")
    assert str(error.value).splitlines()[:2] == [
        "There is not enough memory to train on the largest sample alone.",
        "Tried on cpu.",
    ]
    assert not (runs.folder / "run").exists()


def test_another_failure_is_not_taken_for_a_lack_of_memory(runs: Runs, monkeypatch: Patch) -> None:
    room_for(monkeypatch, 0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        runs.train("run")


def test_only_numbers_and_auto_are_batch_sizes(runs: Runs) -> None:
    config: RunConfig = runs.config()[0]
    assert (config.batch_size, config.samples_per_step) == ("auto", 8)
    for wrong in (0, -1, 2.5, True, "many"):
        with pytest.raises(ConfigError, match="--batch-size: must be auto or an integer >= 1"):
            runs.config(batch_size=wrong)
