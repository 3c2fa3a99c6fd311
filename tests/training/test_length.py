"""How long a run trains: epochs, a limit of time, and validations that no longer improve."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from flmm_core.cli import main
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.errors import ConfigError
from flmm_core.progress import LineProgress, Progress, Stage
from tests.cached import Runs, weights
from tests.stopping import StopAt


class StopInValidation(Progress):
    """Sends Ctrl-C in one of the validations, by its number."""

    def __init__(self, number: int) -> None:
        self.left = number

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        self.left -= name == "Validating"
        if not self.left:
            signal.raise_signal(signal.SIGINT)
        yield Stage()


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    made = Runs(random_twin, drawn, tmp_path)
    made.settings |= {"pictures": 0, "refiner": "none"}
    return made


def without_steps(runs: Runs) -> Runs:
    del runs.settings["steps"]
    return runs


def settings_of(run: Path) -> Any:
    return yaml.safe_load((run / "config.yaml").read_text())


def summary_of(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text())


def checkpoints(run: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run / "checkpoints").iterdir())


def test_epochs_are_steps_as_soon_as_the_data_are_known(runs: Runs) -> None:
    steps = runs.train("steps", steps=5)  # 15 of 6 images, with a caption each
    epochs = without_steps(runs).train("epochs", epochs=2.25)
    assert weights(epochs) == weights(steps)
    assert (settings_of(epochs)["epochs"], settings_of(epochs)["steps"]) == (2.25, 5)
    assert settings_of(steps)["epochs"] is None
    assert [summary_of(run)["epochs"] for run in (epochs, steps)] == [2.5, 2.5]
    assert [summary_of(run)["steps"] for run in (epochs, steps)] == [5, 5]


def test_a_run_of_epochs_is_resumed_from_its_own_file_and_from_another(
    runs: Runs, tmp_path: Path
) -> None:
    whole = without_steps(runs).train("whole", epochs=2)
    with pytest.raises(KeyboardInterrupt, match=r"^Step 2 of 4 is saved\.$"):
        runs.train("cut", epochs=2, progress=StopAt("Training", 2))
    cut = runs.folder / "cut"
    file = tmp_path / "mine.yaml"
    own = settings_of(cut)
    del own["steps"]  # as a user would write it
    file.write_text(yaml.safe_dump(own))
    assert main(["train", "--resume", "--config", str(file)]) == 0
    assert weights(cut) == weights(whole)
    assert main(["train", "--resume", "--output", str(cut)]) == 0  # it is finished
    assert main(["train", "--resume", "--output", str(cut), "--epochs", "3"]) == 2


def test_other_data_under_a_run_of_epochs_are_noticed(
    runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    FORMATS["refcoco"].write(data, draw_images(4, seed=1))
    without_steps(runs).settings["data"] = [f"refcoco:{data}@train"]
    with pytest.raises(KeyboardInterrupt):
        runs.train("run", epochs=3, progress=StopAt("Training", 2))
    data.rename(tmp_path / "old")
    FORMATS["refcoco"].write(data, draw_images(9, seed=1))
    assert main(["train", "--resume", "--output", str(runs.folder / "run")]) == 2
    assert capsys.readouterr().err.endswith(
        f"flmm: The training data of the run in '{runs.folder / 'run'}' have changed.\n"
        "3 epochs were 4 steps when it began; of the 9 samples that there are now they are 9.\n"
        "Bring back the data, or begin a run with another --output.\n"
    )


def test_the_later_one_of_epochs_and_steps_counts(runs: Runs, tmp_path: Path) -> None:
    def length(**more: Any) -> tuple[float | None, int]:
        config, _ = runs.config(**more)
        return config.epochs, config.steps

    without_steps(runs)
    assert length() == (None, 1000)
    assert length(epochs=2) == (2, 0)
    runs.settings["model"] = "tiny"  # has default steps
    assert length(epochs=2) == (2, 0)
    file = tmp_path / "run.yaml"
    arguments = ["train", "--backbone", "qwen", "--config", str(file), "--print-config"]
    for text, options, expected in (
        ("epochs: 2\nsteps: 7", [], (2, 7)),  # a run's own: recomputed from the data
        ("epochs: 2\nsteps: 7", ["--steps", "5"], (None, 5)),
        ("epochs: 2\nsteps: 7", ["--epochs", "5"], (5, 0)),
        ("epochs: null\nsteps: 7", [], (None, 7)),
    ):
        file.write_text(text)
        with pytest.MonkeyPatch.context() as patch:
            shown: list[str] = []
            patch.setattr("click.echo", lambda text, shown=shown, **_: shown.append(str(text)))
            assert main([*arguments, *options]) == 0
        values = yaml.safe_load("".join(shown))
        assert (values["epochs"], values["steps"]) == expected
    with pytest.raises(ConfigError, match="--steps: contradicts --epochs; give one of them"):
        runs.config(epochs=2, steps=3)
    with pytest.raises(ConfigError, match="--steps: should be greater than or equal to 1, not 0"):
        runs.config(steps=0)


def test_a_run_stops_when_its_hours_are_over_and_goes_on(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = runs.train("whole")
    with pytest.raises(KeyboardInterrupt) as stopped:
        runs.train("run", max_hours=1e-9)
    assert str(stopped.value) == "--max-hours 1e-09 are over. Step 1 of 4 is saved."
    run = runs.folder / "run"
    assert checkpoints(run) == [1]
    resume = ["train", "--resume", "--output", str(run)]
    assert main(resume) == 130
    assert capsys.readouterr().err.endswith(
        f"Step 2 of 4 is saved. Resume with `flmm {' '.join(resume)}`.\n"
    )
    assert main([*resume, "--max-hours", "10"]) == 0
    assert weights(run) == weights(whole)


def test_a_run_ends_when_validations_do_not_improve(runs: Runs) -> None:
    runs.settings |= {"val_data": [runs.source], "save_every": 1, "learning_rate": 1e-30}
    said: list[str] = []
    still = {"steps": 9, "patience": 2}
    run = runs.train("run", progress=LineProgress(said.append), **still)
    assert "Training ends after step 3 of 9: 2 validations without a better one (--patience)" in (
        said
    )
    assert (run / "last").resolve().name == "step-3"
    assert summary_of(run)["stopped_after"] == 3
    assert summary_of(run)["steps"] == 9
    before = (run / "summary.json").stat().st_mtime_ns
    runs.train("run", resume=True, **still)
    assert (run / "summary.json").stat().st_mtime_ns == before
    # Stopped in the deciding validation, it is validated again and ends at the same step.
    with pytest.raises(KeyboardInterrupt):
        runs.train("cut", progress=StopInValidation(3), **still)
    cut = runs.train("cut", resume=True, **still)
    assert (cut / "last").resolve().name == "step-3"
    assert weights(cut) == weights(run)
    # With more patience it goes on.
    runs.train("run", resume=True, steps=9, patience=4)
    assert (run / "last").resolve().name == "step-5"


def test_patience_needs_validation_data(runs: Runs) -> None:
    with pytest.raises(ConfigError, match="--patience: 2 validations need data: give --val-data"):
        runs.config(patience=2)


def test_the_newest_checkpoints_are_kept_and_the_best(runs: Runs) -> None:
    runs.settings |= {"save_every": 1, "steps": 5}
    assert checkpoints(runs.train("few", keep=1)) == [5]
    assert checkpoints(runs.train("more", keep=3)) == [3, 4, 5]
    run = runs.train("best", keep=1, val_data=[runs.source])
    best = int(re.sub(r"\D", "", (run / "best").resolve().name))
    assert checkpoints(run) == sorted({best, 5})
