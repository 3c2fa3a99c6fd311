"""Figures that a run sends to trackers, read back with the trackers' own readers."""

from __future__ import annotations

import json
import socket
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from flmm_core.cli import main
from flmm_core.files import write_json
from flmm_core.training.trackers import Trackers, named_figures
from tests.cached import Runs, weights
from tests.stopping import StopAt

Found = Mapping[str, list[tuple[int, float]]]


@pytest.fixture(autouse=True)
def nothing_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, and the trackers' folders are of this test alone."""
    for name, value in {
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "MLFLOW_TRACKING_URI": (tmp_path / "mlruns").as_uri(),
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    return Runs(random_twin, drawn, tmp_path)


def read_tensorboard(run: Path) -> Found:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0})
    found.Reload()
    tags = found.Tags()
    assert tags["images"] == ["sheets/00"]
    return {
        tag: [(event.step, event.value) for event in found.Scalars(tag)] for tag in tags["scalars"]
    }


def read_mlflow(run: Path) -> Found:
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient()
    (experiment,) = client.search_experiments(filter_string="name = 'flmm'")
    (one,) = client.search_runs([experiment.experiment_id])
    assert one.data.params["steps"] == "4"
    return {
        key: [
            (point.step, point.value) for point in client.get_metric_history(one.info.run_id, key)
        ]
        for key in one.data.metrics
    }


def read_trackio(run: Path) -> Found:
    pytest.importorskip("trackio")
    from trackio.sqlite_storage import SQLiteStorage

    (name,) = SQLiteStorage.get_runs("flmm")
    found = defaultdict(list)
    for row in SQLiteStorage.get_logs("flmm", name):
        for key, value in row.items():
            if "/" in key:
                found[key].append((row["step"], value))
    return found


def leveldb_records(data: bytes) -> Iterator[bytes]:
    """Of a log in LevelDB's format, in which W&B keeps a run, behind a header of 7 bytes."""
    place, whole, block = 7, b"", 1 << 15
    while place + 7 <= len(data):
        rest = block - place % block
        if rest < 7:  # nothing begins in the last bytes of a block
            place += rest
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        whole += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            yield whole
            whole = b""


def read_wandb(run: Path) -> Found:
    pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2

    found = defaultdict(list)
    identities = set()
    for path in sorted(run.glob("wandb/offline-run-*/*.wandb")):
        for data in leveldb_records(path.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            if record.HasField("run"):
                identities.add(record.run.run_id)
            for item in record.history.item:
                key = item.key or "/".join(item.nested_key)
                if "/" in key and not key.startswith("sheets"):
                    found[key].append((record.history.step.num, float(json.loads(item.value_json))))
    assert len(identities) == 1
    return found


READERS = {
    "tensorboard": read_tensorboard,
    "wandb": read_wandb,
    "trackio": read_trackio,
    "mlflow": read_mlflow,
}


@pytest.fixture(scope="module")
def untracked(random_twin: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    runs = Runs(random_twin, drawn, tmp_path_factory.mktemp("untracked"))
    return weights(runs.train("run", val_data=[runs.source]))


@pytest.mark.parametrize("name", READERS)
def test_a_stopped_and_resumed_run_is_one_run_with_each_step_once(
    name: str, runs: Runs, untracked: bytes
) -> None:
    pytest.importorskip(name)
    more = {"eval_data": [runs.source], "val_data": [runs.source], "pictures": 1}
    with pytest.raises(KeyboardInterrupt):
        runs.train("run", log_with=name, progress=StopAt("Training", 3), **more)
    run = runs.train("run", log_with=name, resume=True, **more)
    assert weights(run) == untracked
    found = READERS[name](run)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "validation" not in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4]
    for key in ("loss", "learning_rate", "gradient_norm", "pictures_per_second"):
        sent = found[f"train/{key}"]
        assert [step for step, _ in sent] == [1, 2, 3, 4], key
        if key != "pictures_per_second":
            assert [v for _, v in sent] == pytest.approx([row[key] for row in trained], rel=1e-5)
    sent = found["validation/refined/ciou"]
    assert [step for step, _ in sent] == [2, 4]
    (scores,) = json.loads((run / "summary.json").read_text())["evaluations"].values()
    (final,) = (key for key in found if key.startswith("test/") and key.endswith("/refined/ciou"))
    assert found[final] == [(4, pytest.approx(scores["refined"]["ciou"], rel=1e-5))]


def test_a_tracker_that_a_resumed_run_adds_gets_what_was_before(runs: Runs) -> None:
    pytest.importorskip("tensorboard")
    with pytest.raises(KeyboardInterrupt):
        runs.train("run", progress=StopAt("Training", 3))
    run = runs.train("run", log_with=["tensorboard"], resume=True, eval_data=[runs.source],
                     pictures=1)  # fmt: skip
    assert [step for step, _ in read_tensorboard(run)["train/loss"]] == [1, 2, 3, 4]


@pytest.fixture
def nobody() -> Iterator[str]:
    """A port at which nobody answers."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


def test_a_folder_that_cannot_be_written_is_one_warning(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")
    run = runs.folder / "run"
    run.mkdir()
    (run / "tensorboard").write_text("a file, where the tracker wants a folder")
    runs.train("run", log_with="tensorboard")
    (warning,) = (one for one in caplog.records if one.name.endswith("trackers"))
    assert "tensorboard fails" in warning.getMessage()
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_server_that_is_not_there_is_one_warning(
    runs: Runs, nobody: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", nobody)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    run = runs.train("run", log_with="mlflow")
    (warning,) = (one for one in caplog.records if one.name.endswith("trackers"))
    assert "mlflow fails" in warning.getMessage()
    assert (run / "summary.json").exists()


def test_a_package_that_is_missing_is_told_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("flmm_core.training.trackers.find_spec", lambda name: None)
    told = ("train", "--backbone", "qwen", "--output", str(tmp_path / "run"))
    assert main([*told, "--log-with", "tensorboard,wandb"]) == 3
    error = capsys.readouterr().err
    assert "pip install tensorboard wandb" in error
    assert "Loading the frozen models" not in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", ["tensorbord", "wandb,tensorbord"])
def test_an_unknown_tracker_is_named(given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--backbone", "qwen", "--log-with", given]) == 2
    error = capsys.readouterr().err
    assert "'tensorbord' is none of tensorboard, wandb, trackio, mlflow" in error


def test_broken_state_is_no_state_and_no_trackers_are_no_files(tmp_path: Path) -> None:
    for content in ([], {"tensorboard": 3}, {"tensorboard": {"id": "x"}}):
        write_json(tmp_path / "trackers.json", content)
        trackers = Trackers(tmp_path, [], {})
        trackers.send({"step": 1, "loss": 0.5})
        trackers.close()
    assert [path.name for path in tmp_path.iterdir()] == ["trackers.json"]


def test_figures_are_numbers_with_names_that_all_trackers_take() -> None:
    scores: dict[str, Any] = {"a:/b@c": {"ciou": 0.5, "masks": 3, "n": None, "on": True}, "x": "y"}
    scores["far"] = float("nan")
    assert named_figures("test", scores) == {"test/a_/b_c/ciou": 0.5, "test/a_/b_c/masks": 3.0}
