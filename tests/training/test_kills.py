"""A run that is killed anywhere and resumed ends as one that never stopped."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Any

import pytest
import torch
import yaml

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from tests.killing import Event, fill_disk, kill, run_command

pytestmark = pytest.mark.multiprocess

IMAGE = Event("open", "/images/")
STEP = [IMAGE] * 4
"""While samples of a step are read; the first steps read more images than that."""


def saved(step: int) -> Event:
    """`last` is about to be linked to the checkpoint of a step."""
    return Event("os.symlink", f"step-{step}")


def rated(step: int) -> Event:
    """The validation of a step is recorded."""
    return Event("os.rename", f"step-{step}/score.json")


FEW = {
    "a checkpoint is half written": (SIGKILL, [Event("open", ".step-4."), Event("open", ".pt")]),
    "the last validation": (SIGKILL, [saved(7), IMAGE, IMAGE]),
}
MORE = {
    "the model loads": (SIGKILL, [Event("open", "processor_config.json")]),
    "a step before the first checkpoint": (SIGKILL, STEP),
    "a step before the first checkpoint, by Ctrl-C": (SIGINT, STEP),
    "a checkpoint gets its name": (SIGKILL, [Event("os.rename", "checkpoints/step-4")]),
    "a checkpoint becomes the last": (SIGKILL, [saved(4)]),
    "the first validation, by Ctrl-C": (SIGINT, [saved(2), IMAGE, IMAGE]),
    "the confidence is written, the score not": (
        SIGKILL, [saved(7), Event("open", "confidence.json"), Event("open", "score.json")],
    ),
    "the score is written, best not linked": (SIGKILL, [rated(2), Event("os.symlink", "step-2")]),
    "an old checkpoint is half removed": (
        SIGKILL, [saved(7), Event("shutil.rmtree", ".step-4."), *[Event("os.remove")] * 2],
    ),
    "a step, by SIGTERM": (SIGTERM, [saved(2), rated(2), IMAGE, IMAGE]),
    "the final evaluation": (SIGKILL, [rated(7), IMAGE, IMAGE]),
    "the final evaluation, by SIGTERM": (SIGTERM, [rated(7), IMAGE, IMAGE]),
    "a sheet is drawn": (SIGKILL, [Event("open", "/01.png")]),
    "the summary is written": (SIGKILL, [Event("open", "summary.json")]),
    "the summary gets its name": (SIGKILL, [Event("os.rename", "summary.json")]),
}  # fmt: skip


@pytest.fixture(scope="module")
def config(random_twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of settings: four checkpoints, each validated; one is removed."""
    folder = tmp_path_factory.mktemp("kills")
    drawn = FORMATS["refcoco"].write(folder / "drawn", draw_images(2, seed=5, kinds=("plain",)))
    settings = {
        "backbone": "qwen",
        "model": str(random_twin),
        "data": [f"refcoco:{drawn}@train"],
        "val_data": [f"refcoco:{drawn}@train"],
        "eval_data": [f"refcoco:{drawn}@train"],
        "train_protocol": "standard",
        "refiner": "sam:tiny",
        "refiner_options": {"text": False},
        "steps": 7,
        "batch_size": 2,
        "save_every": 2,
        "log_every": 1,
        "pictures": 2,
        "workers": 0,
        "learning_rate": 3e-3,
        "head": {"base_channels": 4, "enlarge_to": 16},
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture(scope="module")
def unstopped(config: Path) -> dict[str, Any]:
    output = config.parent / "unstopped"
    log = config.parent / "unstopped.log"
    code = run_command(["train", "--config", str(config), "--output", str(output)], log)
    assert code == 0, log.read_text()
    return outcome(output)


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, apart from times and `environment.json`."""
    found: dict[str, Any] = {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.suffix in (".safetensors", ".png")
    }
    for path in run.rglob("*.json"):
        found[str(path.relative_to(run))] = timeless(json.loads(path.read_bytes()))
    for path in run.rglob("optimizer.pt"):  # equal states are not always pickled to equal bytes
        found[str(path.relative_to(run))] = plain(torch.load(path, weights_only=True))
        del found[str(path.relative_to(run).with_suffix(".json"))]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found["metrics"] = [timeless(json.loads(line)) for line in lines]
    found["names"] = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    found["links"] = {name: (run / name).resolve().name for name in ("best", "last")}
    del found["environment.json"]
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        times = ("seconds", "share_waiting_for_data")
        kept = {k: v for k, v in value.items() if k not in times and "_per_second" not in k}
        return {key: timeless(inner) for key, inner in kept.items()}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def begin(name: str, config: Path, place: list[Event], happens: Callable[[], object]) -> Any:
    """Begin a run to which something happens: its folder, its exit code and what it said."""
    output, log = config.parent / name.replace(" ", "-"), config.parent / f"{name}.log"
    arguments = ["train", "--config", str(config), "--output", str(output)]
    return output, run_command(arguments, log, place, happens), log.read_text()


def resume(output: Path) -> dict[str, Any]:
    log = output.with_suffix(".resumed")
    code = run_command(["train", "--resume", "--output", str(output)], log)
    assert code == 0, log.read_text()
    return outcome(output)


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]


def check(name: str, signal: int, place: list[Event], config: Path, whole: dict[str, Any]) -> None:
    output, code, said = begin(name, config, place, kill(signal))
    assert code == (-signal if signal == SIGKILL else 130), said
    assert not (output / "summary.json").exists()
    assert different(whole, resume(output)) == []


@pytest.mark.parametrize("name", FEW)
def test_a_killed_run_loses_nothing(name: str, config: Path, unstopped: dict[str, Any]) -> None:
    check(name, *FEW[name], config, unstopped)


@pytest.mark.slow
@pytest.mark.parametrize("name", MORE)
def test_a_run_killed_anywhere_loses_nothing(
    name: str, config: Path, unstopped: dict[str, Any]
) -> None:
    check(name, *MORE[name], config, unstopped)


@pytest.mark.parametrize(
    "full",
    [
        Event("os.mkdir", ".step-4."),
        pytest.param(Event("open", ".step-4."), marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_leaves_the_checkpoint_before(
    full: Event, config: Path, unstopped: dict[str, Any]
) -> None:
    """Full before the head is written, and after."""
    output, code, said = begin(f"disk full at {full.name}", config, [full], fill_disk)
    assert code == 1, said
    message = said[said.index("flmm: ") :].splitlines()
    last = output / "checkpoints" / "step-2"
    assert message[0] == f"flmm: The checkpoint '{last.with_name('step-4')}' cannot be written."
    assert "File too large" in message[1]
    assert message[2] == (
        f"Free some space or make the folder writable. The last checkpoint, '{last}', is kept; "
        f"`flmm train --resume --output {output}` goes on from there."
    )
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-2"]
    assert different(unstopped, resume(output)) == []


def test_the_unstopped_run_has_what_a_kill_could_lose(unstopped: dict[str, Any]) -> None:
    assert unstopped["links"]["last"] == "step-7"
    assert [row["step"] for row in unstopped["metrics"]] == [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 7]
    assert {"checkpoints/step-7/confidence.json", "pictures/01.png"} <= unstopped.keys()
    scores = {
        row["validation"]["refined"]["ciou"] for row in unstopped["metrics"] if "validation" in row
    }
    assert len(scores) == 4
