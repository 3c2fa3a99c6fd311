"""A run that is killed anywhere and resumed ends as one that never stopped."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Any

import pytest

from tests.killing import Event, fill_disk, kill, run_command
from tests.outcomes import different, outcome

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
def unstopped(config: Path) -> dict[str, Any]:
    output = config.parent / "unstopped"
    log = config.parent / "unstopped.log"
    code = run_command(["train", "--config", str(config), "--output", str(output)], log)
    assert code == 0, log.read_text()
    return outcome(output)


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
