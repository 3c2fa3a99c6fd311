"""What a run keeps when it fails or is stopped: checkpoints, metrics, the batch at fault."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.cli import main
from flmm_core.data import rle
from flmm_core.data.sources import open_source
from flmm_core.errors import RunError, UsageError, WeightsError
from flmm_core.files import hold
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.progress import Progress
from flmm_core.training.preflight import open_data
from flmm_core.training.run_folder import RunFolder
from flmm_core.training.schedule import rate
from tests.cached import Runs, weights
from tests.stopping import StopAt

Patch = pytest.MonkeyPatch


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    return Runs(random_twin, drawn, tmp_path)


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steep(logits: Tensor, truth: Tensor) -> Tensor:
    """(P,) zeros, whose gradient is not a number: a root is infinitely steep at 0."""
    return (0 * logits).sqrt().flatten(1).sum(1)


def test_a_gradient_that_is_not_finite_stops_before_the_optimizer(
    runs: Runs, monkeypatch: Patch
) -> None:
    whole = runs.train("whole")
    with pytest.raises(KeyboardInterrupt):
        runs.train("run", progress=StopAt("Training", 2), save_every=1)
    run = runs.folder / "run"
    before = weights(run)
    with monkeypatch.context() as patch:
        patch.setattr("flmm_core.training.losses.dice_loss", steep)
        with pytest.raises(RunError) as error:
            runs.train("run", resume=True, save_every=1)
    failed = run / "failed-step-3"
    source = f"jsonl:{failed}@train"
    report = json.loads((failed / "failure.json").read_text())
    names = ", ".join(sample["name"] for sample in report["samples"])
    assert str(error.value) == (
        "The gradient norm of step 3 is nan.\n"
        f"Samples: {names}.\nThey are kept in '{failed}'; the weights are as before this step.\n"
        f"The last checkpoint, '{run / 'checkpoints' / 'step-2'}', is kept; `flmm train --resume "
        f"--output {run}` goes on from there. Lower --learning-rate there, or begin a run with "
        "--dtype float32."
    )
    assert weights(run) == before
    assert report["gradient norm"] == "nan"
    assert report["gradients that are not finite"]
    assert all(all(sample["finite"].values()) for sample in report["samples"])
    samples = open_data(runs.config()[0], Progress()).samples
    originals = {sample.name: sample for sample in samples}
    kept = open_source(source, "standard")
    for number, sample in enumerate(report["samples"]):
        original = originals[sample["name"]]
        assert sample["phrases"] == [phrase.text for phrase in original.phrases]
        (copy,) = {s.image_path for s in kept if s.image_path.name.startswith(f"{number:03}-")}
        assert copy.read_bytes() == original.image_path.read_bytes()
    masks = sum(int(rle.area(phrase.mask)) for s in kept for phrase in s.phrases)
    wanted = [phrase for s in report["samples"] for phrase in originals[s["name"]].phrases]
    texts = sorted(phrase.text for s in kept for phrase in s.phrases)
    assert texts == sorted(phrase.text for phrase in wanted)
    assert masks == sum(int(rle.area(phrase.mask)) for phrase in wanted)
    assert weights(runs.train("run", resume=True, save_every=1)) == weights(whole)


def test_a_learning_rate_is_used_when_a_run_is_resumed_with_it(runs: Runs) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.train("run", progress=StopAt("Training", 2))
    said: list[str] = []
    progress = StopAt("", 0)
    progress.say = said.append  # type: ignore[method-assign]
    runs.train("run", resume=True, learning_rate=0.02, progress=progress)
    assert "Resuming with --learning-rate 0.02 (before: 0.01)" in said
    rates = [row["learning_rate"] for row in rows(runs.folder / "run")]
    shares = [rate(step, runs.config()[0]) for step in range(4)]
    assert rates == [0.01 * shares[0], 0.01 * shares[1], 0.02 * shares[2], 0.02 * shares[3]]
    assert "learning_rate: 0.02" in (runs.folder / "run" / "config.yaml").read_text()


def test_randomness_in_a_step_is_the_same_after_a_resume(runs: Runs, monkeypatch: Patch) -> None:
    forward = MaskHead.forward

    def noisy(self: MaskHead, maps: Any) -> tuple[Tensor, ...]:
        return tuple(F.dropout(one, 0.3, self.training) for one in forward(self, maps))

    monkeypatch.setattr(MaskHead, "forward", noisy)
    whole = runs.train("whole")
    with pytest.raises(KeyboardInterrupt):
        runs.train("cut", progress=StopAt("Training", 3))
    torch.rand(7)
    assert weights(runs.train("cut", resume=True)) == weights(whole)
    assert [row["loss"] for row in rows(runs.folder / "cut")] == [
        row["loss"] for row in rows(whole)
    ]


def test_metrics_are_rewound_to_the_checkpoint(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, save_every=2, steps=6)
    lines = [{"step": n, "loss": 1.5} for n in (1, 2)]
    lines += [{"step": 2, "validation": {}}, {"step": 3}, {"step": 3}, {"step": 4}]
    lines += [{"step": 4, "validation": {}}, {"step": 5}]
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 6, "lo')
    folder.rewind(4)
    kept = [(row["step"], "validation" in row) for row in rows(tmp_path)]
    assert kept == [(1, False), (2, False), (2, True), (3, False), (4, False)]
    folder.log({"step": 5})
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2, 3, 4, 5]
    folder.rewind(0)
    assert rows(tmp_path) == []


def test_a_damaged_score_is_an_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, save_every=2, steps=6)
    score = folder.step(2) / "score.json"
    score.parent.mkdir(parents=True)
    for content in ("", "[]", '{"validation_ciou": null}', "\x00"):
        score.write_text(content)
        with pytest.raises(WeightsError) as error:
            folder.score(2)
        assert str(score) in str(error.value)


def test_a_run_that_cannot_begin_leaves_nothing(runs: Runs) -> None:
    with pytest.raises(WeightsError):
        runs.train("run", model=str(runs.folder / "missing"))
    assert not (runs.folder / "run").exists()
    runs.train("run", steps=1)


def test_a_file_that_cannot_be_written_is_named_with_what_is_kept(runs: Runs) -> None:
    metrics = runs.folder / "run" / "metrics.jsonl"
    metrics.mkdir(parents=True)
    with pytest.raises(RunError) as error:
        runs.train("run")
    assert str(error.value) == (
        f"'{metrics}' cannot be written.\nIs a directory.\n"
        "Free some space or make the folder writable. There is no checkpoint yet; "
        f"`flmm train --resume --output {metrics.parent}` begins again."
    )


def test_a_finished_run_is_evaluated_again_only_on_other_data(runs: Runs) -> None:
    run = runs.train("run", steps=1)
    before = (run / "summary.json").read_bytes()
    assert runs.train("run", steps=1, resume=True) == run
    assert (run / "summary.json").read_bytes() == before
    runs.train("run", steps=1, resume=True, eval_data=[runs.source], pictures=0)
    assert list(json.loads((run / "summary.json").read_text())["evaluations"]) == [runs.source]


def test_a_folder_is_held_by_one_process(runs: Runs) -> None:
    run = runs.folder / "run"
    with hold(run, "training into"), pytest.raises(UsageError) as error:
        runs.train("run")
    assert str(error.value) == (
        f"Another process is training into '{run}'.\n"
        "Wait for it or stop it, or give another folder."
    )
    with hold(runs.cache, "building the cache in"), pytest.raises(UsageError, match="is building"):
        runs.build()


HOLDER = """
import os, sys, time
from pathlib import Path
from flmm_core.files import hold
with hold(Path(sys.argv[1]), "training into"):
    started, worker = os.pipe()
    if os.fork() == 0:  # a DataLoader worker lives on for a while
        os.write(worker, b"1")
        time.sleep(60)
        os._exit(0)
    os.read(started, 1)  # a worker lets go of the lock as its first act
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.mark.multiprocess
def test_a_killed_process_holds_nothing_even_if_its_workers_live_on(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    ) as holder:  # fmt: skip
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(UsageError), hold(tmp_path, "training into"):
            pass
        holder.kill()
        holder.wait()
        try:
            with hold(tmp_path, "training into"):
                pass
        finally:
            os.killpg(holder.pid, 9)
        assert not (tmp_path / ".lock").exists()


@pytest.mark.parametrize("variable", ["WORLD_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_a_command_that_does_not_share_its_work_refuses_several_processes(
    variable: str, tmp_path: Path, monkeypatch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(variable, "2")
    assert main(["cache", "build", "cache", "--backbone", "qwen"]) == 2
    first = capsys.readouterr().err.splitlines()[0]
    assert first == f"flmm: `flmm cache build` runs in one process, but {variable} is 2."
    assert list(tmp_path.iterdir()) == []
