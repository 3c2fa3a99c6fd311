"""Of several processes that share a run any may be killed at any moment: nothing is lost.

Features are kept in memory, which is gone with its process. FLMM_MOMENTS is how many of the 20
moments are tried.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pytest

from tests.killing import Event, kill, run_processes
from tests.outcomes import different, outcome

pytestmark = pytest.mark.multiprocess

IMAGE = Event("open", "/images/")
MODEL = Event("open", "processor_config.json")


def saved(step: int) -> Event:
    return Event("os.symlink", f"step-{step}")


def rated(step: int) -> Event:
    return Event("os.rename", f"step-{step}/score.json")


MAIN: dict[str, list[Event]] = {
    "a checkpoint is half written": [Event("open", ".step-4."), Event("open", ".pt")],
    "the model loads": [MODEL],
    "the settings are written anew": [Event("os.rename", "/config.yaml")] * 2,
    "the first step": [IMAGE],
    "the first validation": [saved(2), IMAGE],
    "a checkpoint gets its name": [Event("os.rename", "checkpoints/step-4")],
    "a checkpoint becomes the last": [saved(4)],
    "the confidence is written, the score not": [
        saved(7), Event("open", "confidence.json"), Event("open", "score.json"),
    ],
    "the score is written, best not linked": [rated(2), Event("os.symlink", "step-2")],
    "an old checkpoint is half removed": [
        saved(7), Event("shutil.rmtree", ".step-4."), Event("os.remove"), Event("os.remove"),
    ],
    "a step between two checkpoints": [saved(2), rated(2), IMAGE],
    "the last checkpoint is written": [Event("os.mkdir", ".step-7.")],
    "a sheet is drawn": [Event("open", "/01.png")],
    "the summary gets its name": [Event("os.rename", "summary.json")],
}  # fmt: skip
"""What the main process is about to do when it is killed."""
OTHER: dict[str, list[Event]] = {
    "a step after the first checkpoint": [IMAGE] * 3,
    "the model loads": [MODEL],
    "the first step": [IMAGE],
    "a step": [IMAGE] * 2,
    "a later step": [IMAGE] * 4,
    "the final evaluation": [Event("open", "/checkpoints/step-")],
}
"""What the other process is about to do, most of its time."""
MOMENTS = [
    *((rank, place) for rank, places in ((1, OTHER), (0, MAIN)) for place in places.values())
]


@pytest.fixture(scope="module")
def unstopped(config: Path) -> dict[str, Any]:
    output = config.parent / "unstopped"
    assert run(config, output, 2) == [0, 0]
    return outcome(output)


def run(config: Path, output: Path, count: int, **happens: Any) -> list[int]:
    arguments = ["train", "--config", str(config), "--cache-memory", "0.1", "--output", str(output)]
    return run_processes(arguments, count, output.with_suffix(".log"), **happens)


@pytest.mark.parametrize("number", range(int(os.environ.get("FLMM_MOMENTS", "1"))))
def test_a_killed_process_loses_nothing(
    number: int, config: Path, unstopped: dict[str, Any]
) -> None:
    assert len(MOMENTS) == 20
    rank, place = MOMENTS[number]
    output = config.parent / f"killed-{number}"
    codes = run(config, output, 2, place=place, happens=kill(SIGKILL), to=rank)
    assert codes[rank] == -SIGKILL
    assert codes[1 - rank] == 1
    said = output.with_suffix(".log.1" if rank == 0 else ".log").read_text()
    assert f"flmm: Process {1 - rank} of 2 has lost the others." in said
    assert not (output / "summary.json").exists()
    if (output / "config.yaml").exists():
        again = ["train", "--resume", "--output", str(output)]
        assert run_processes(again, 2, output.with_suffix(".resumed")) == [0, 0]
    else:  # nothing was begun
        assert run(config, output, 2) == [0, 0]
    assert different(unstopped, outcome(output)) == []


def test_a_run_goes_on_with_another_number_of_processes(
    config: Path, unstopped: dict[str, Any]
) -> None:
    """In the same order: each step has the loss that it has in the run of two."""
    output = config.parent / "other"
    place = [saved(2), rated(2), IMAGE]
    assert run(config, output, 2, place=place, happens=kill(SIGKILL))[0] == -SIGKILL
    again = ["train", "--resume", "--output", str(output)]
    assert run_processes(again, 3, output.with_suffix(".resumed")) == [0, 0, 0]
    assert json.loads((output / "environment.json").read_text())["processes"] == 3
    for row, other in zip(outcome(output)["metrics"], unstopped["metrics"], strict=True):
        assert row["step"] == other["step"]
        if "loss" in row:
            assert row["loss"] == pytest.approx(other["loss"], abs=1e-4)


def test_two_processes_have_the_scores_of_one(config: Path, unstopped: dict[str, Any]) -> None:
    output = config.parent / "alone"
    assert run(config, output, 1) == [0]
    one, two = outcome(output)["summary.json"], unstopped["summary.json"]
    assert one.keys() == two.keys()
    for part in ("coarse", "refined"):
        assert two[part] == pytest.approx(one[part], abs=1e-4)
    assert one["refined"]["ciou"] > 0
