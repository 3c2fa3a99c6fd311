"""The mask head is trained alone first, and then the refiner with it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from flmm_core.pipeline.build import build_from_config
from flmm_core.training.loop import seed_everything
from tests.cached import Runs, weights

REFINED = {"refined_dice", "refined_cross_entropy"}


@pytest.fixture(scope="module")
def runs(random_twin: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(random_twin, drawn, tmp_path_factory.mktemp("later"))
    # Of 5 steps the first 2 train the mask head alone.
    made.settings |= {"pictures": 0, "steps": 5, "save_every": 2, "keep": 9, "refine_from": 0.4}
    return made


@pytest.fixture(scope="module")
def run(runs: Runs) -> Path:
    return runs.train("run")


def part(weights: dict[str, Any], name: str) -> dict[str, bytes]:
    return {key: value.tobytes() for key, value in weights.items() if key.startswith(name)}


def losses(run: Path) -> list[set[str]]:
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{*line} & {"coarse_dice", "presence", *REFINED} for line in lines if "loss" in line]


def test_the_refiner_is_left_alone_until_then(runs: Runs, run: Path) -> None:
    config, spec = runs.config()
    seed_everything(config.seed)
    fresh = {
        key: value.numpy() for key, value in build_from_config(config, spec)[1].state_dict().items()
    }
    heads = [load_file(run / "checkpoints" / f"step-{n}" / "model.safetensors") for n in (2, 4)]
    early, late = heads
    assert part(early, "refiner") == part(fresh, "refiner") != {}
    assert part(early, "mask_head") != part(fresh, "mask_head")
    assert part(late, "refiner") != part(early, "refiner")
    assert part(late, "mask_head") != part(early, "mask_head")
    alone, both = {"coarse_dice", "presence"}, {"coarse_dice", "presence", *REFINED}
    assert losses(run) == [alone] * 2 + [both] * 3


@pytest.mark.parametrize("step", [2, 4])
def test_a_stopped_run_goes_on_bit_for_bit(runs: Runs, run: Path, step: int) -> None:
    cut = shutil.copytree(run, runs.folder / f"cut-{step}", symlinks=True)
    for number in {2, 4, 5} - set(range(step + 1)):
        shutil.rmtree(cut / "checkpoints" / f"step-{number}")
    (cut / "summary.json").unlink()
    (cut / "last").unlink()
    (cut / "last").symlink_to(f"checkpoints/step-{step}")
    assert weights(runs.train(cut.name, resume=True)) == weights(run)


@pytest.mark.parametrize("more", [{"refiner": "none"}, {"train": ["sam"], "init_head": "run"}])
def test_what_is_trained_alone_anyway_is_trained_from_the_start(
    runs: Runs, run: Path, more: dict[str, Any]
) -> None:
    if "init_head" in more:
        more["init_head"] = str(run)
    found = losses(runs.train(more.get("refiner", "sam"), steps=2, refine_from=0.9, **more))
    assert all(names >= REFINED for names in found)
    assert found
