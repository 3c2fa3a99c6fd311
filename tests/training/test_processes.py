"""Several processes train as one with the same batch, and end together when one cannot go on."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_core.training import losses
from tests.killing import Event, fill_disk, kill, run_command, run_processes

pytestmark = pytest.mark.multiprocess

IMAGE = Event("open", "/images/")


def train(config: Path, name: str, count: int, *more: str, **happens: Any) -> tuple[Path, Any]:
    """Train in some processes: the run folder and their exit codes."""
    output = config.parent / name
    arguments = ["train", "--config", str(config), "--output", str(output), *more]
    log = output.with_suffix(".log")
    if count == 1:
        return output, [run_command(arguments, log, **happens)]
    return output, run_processes(arguments, count, log, **happens)


def said(output: Path, rank: int = 0) -> str:
    return output.with_suffix(f".log.{rank}" if rank else ".log").read_text()


# --- one step --------------------------------------------------------------------------------

STEP = ["--steps", "1", "--val-data", "", "--eval-data", "", "--clip-norm", "1e9"]


@pytest.fixture(scope="module")
def gradient(config: Path) -> Callable[..., dict[int, torch.Tensor]]:
    """The gradient of the first step by the number of the weight, as AdamW keeps it."""
    known: dict[tuple[object, ...], dict[int, torch.Tensor]] = {}

    def found(
        count: int, batch_size: int, accumulate: int = 1, *more: str
    ) -> dict[int, torch.Tensor]:
        key = count, batch_size, accumulate, *more
        if key not in known:
            sizes = ["--batch-size", str(batch_size), "--accumulate", str(accumulate)]
            run, codes = train(config, f"step-{len(known)}", count, *STEP, *sizes, *more)
            assert codes == [0] * count, said(run)
            saved = torch.load(run / "last" / "optimizer.pt", weights_only=True)["optimizer"]
            beta = saved["param_groups"][0]["betas"][0]
            state = saved["state"].items()
            known[key] = {weight: values["exp_avg"] / (1 - beta) for weight, values in state}
        return known[key]

    return found


@pytest.mark.parametrize(
    ("count", "batch_size", "accumulate"),
    [
        (2, 5, 2),  # shares of 2 and 3 samples, in parts
        (3, 2, 1),  # one process has no sample
        (1, 5, 3),
        pytest.param(3, 7, 1, marks=pytest.mark.slow),
        pytest.param(2, 1, 4, marks=pytest.mark.slow),
    ],
)
def test_the_gradient_is_that_of_one_process(
    count: int,
    batch_size: int,
    accumulate: int,
    gradient: Callable[..., dict[int, torch.Tensor]],
) -> None:
    one, several = gradient(1, batch_size), gradient(count, batch_size, accumulate)
    insist_equal(one, several)


def insist_equal(one: dict[int, torch.Tensor], several: dict[int, torch.Tensor]) -> None:
    assert one.keys() == several.keys()
    assert max(float(grad.abs().max()) for grad in one.values()) > 0.1
    for weight, grad in one.items():
        assert float((several[weight] - grad).abs().max()) <= 1e-5


def test_the_same_masks_are_refined_in_any_number_of_processes(
    gradient: Callable[..., dict[int, torch.Tensor]],
) -> None:
    phrases = "--train-protocol", "flmm-paper"  # all of an image in one sample
    some = *phrases, "--refine-at-most", "1"
    one = gradient(1, 5, 1, *some)
    insist_equal(one, gradient(2, 5, 2, *some))
    every = gradient(1, 5, 1, *phrases)
    assert any(float((every[weight] - grad).abs().max()) > 1e-3 for weight, grad in one.items())


# --- ending together -------------------------------------------------------------------------


def fail() -> None:
    raise ZeroDivisionError("a fault")


def spoil() -> None:
    """From now on the loss is not a number."""
    losses.dice_loss = lambda logits, truth: logits.mean((1, 2)) * torch.nan


def test_a_fault_in_one_process_ends_all(config: Path) -> None:
    place = {"place": [IMAGE], "happens": fail, "to": 1}
    run, codes = train(config, "fault", 2, *STEP, **place)
    assert codes == [1, 70]
    assert "flmm: Process 1 of 2 failed.\nZeroDivisionError: a fault" in said(run)
    assert "Traceback" in said(run, 1)
    assert "Traceback" not in said(run)


def test_a_loss_of_one_process_that_is_not_finite_ends_all(config: Path) -> None:
    place = {"place": [IMAGE], "happens": spoil, "to": 1}
    run, codes = train(config, "nan", 2, *STEP, **place)
    assert codes == [1, 1]
    assert "flmm: The loss of step 1 is nan." in said(run)
    assert "flmm: " not in said(run, 1)
    report = json.loads((run / "failed-step-1-process-1" / "failure.json").read_text())
    assert report["loss"] == "nan"
    assert len(report["samples"]) == 1


def test_a_full_disk_ends_all(config: Path) -> None:
    place = {"place": [Event("os.mkdir", ".step-1.")], "happens": fill_disk}
    run, codes = train(config, "full", 2, *STEP, **place)
    assert codes == [1, 1]
    assert f"flmm: The checkpoint '{run}/checkpoints/step-1' cannot be written." in said(run)
    assert "flmm: " not in said(run, 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_request_to_stop_one_process_saves_the_step_of_all(
    number: signal.Signals, config: Path
) -> None:
    more = ["--val-data", "", "--eval-data", "", "--steps", "9"]
    place = {"place": [IMAGE] * 2, "happens": kill(number), "to": 1}
    run, codes = train(config, f"stop-{number.name}", 2, *more, **place)
    assert codes == [130, 130]
    saved = (run / "last").resolve().name.removeprefix("step-")
    assert f"flmm: Interrupted. Step {saved} of 9 is saved. Resume with" in said(run)
    assert "Interrupted" not in said(run, 1)


def test_wrong_settings_are_told_once(config: Path) -> None:
    run, codes = train(config, "wrong", 2, "--data", "refcoco:/nowhere@train")
    assert codes == [3, 3]
    assert said(run).count("flmm: ") == 1
    assert "flmm: " not in said(run, 1)
    assert not run.exists()


# --- data that cannot be used ----------------------------------------------------------------


@pytest.mark.slow
def test_what_is_left_out_is_that_of_all(config: Path, drawn: Path, tmp_path: Path) -> None:
    data = shutil.copytree(drawn, tmp_path / "data")
    broken = sorted(data.rglob("*.png"))[1]
    broken.write_bytes(b"no image")
    source = f"refcoco:{data}@train"
    more = ["--data", source, "--val-data", source, "--eval-data", "", "--steps", "3"]
    more += ["--save-every", "3", "--train-protocol", "flmm-paper"]  # every image once
    run, codes = train(config, "too-many", 2, *more, "--max-skipped", "0")
    assert codes == [3, 3]
    assert said(run).count("flmm: ") == 1
    assert "flmm: " not in said(run, 1)
    found = []
    for count in (1, 2):
        run, codes = train(config, f"fewer-{count}", count, *more, "--max-skipped", "50%")
        assert codes == [0] * count
        summary = json.loads((run / "summary.json").read_text())
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        found.append((summary["left_out"], rows[-1]["validation"]["left_out"]))
    assert found[0] == found[1]
    assert found[0][0]


# --- as one ----------------------------------------------------------------------------------


def test_evaluation_is_shared_and_exact(config: Path) -> None:
    run, codes = train(config, "head", 1, "--steps", "2", "--eval-data", "")
    assert codes == [0]
    data = json.loads((run / "summary.json").read_text())
    assert data["steps"] == 2
    source = next(line for line in config.read_text().splitlines() if "refcoco" in line)[2:]
    printed = []
    for count in (1, 3):
        log = config.parent / f"eval-{count}.log"
        arguments = ["eval", str(run), "--data", source, "--batch-size", "3", "--json"]
        codes = run_processes(arguments, count, log)
        assert codes == [0] * count
        text = log.read_text()
        scores = json.loads(text[text.index("\n{") :])["data"][source]
        del scores["seconds"]
        printed.append(scores)
        assert all("{" not in Path(f"{log}.{rank}").read_text() for rank in range(1, count))
    assert printed[0] == printed[1]
    assert os.environ.get("WORLD_SIZE") is None
