"""A benchmark of a toy model, in one process and in several, stopped and resumed."""

from __future__ import annotations

import json
import re
import shlex
import time
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from flmm_core.benchmark import BenchmarkRun, Plan, run
from flmm_core.benchmark.rows import SampleRows
from flmm_core.cli import main
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError, UsageError
from flmm_core.evaluation.benchmark_folder import read_measurement
from flmm_core.evaluation.phrase_rows import PhraseRow, read_rows
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.files import hold
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.progress import LineProgress
from tests.flows import fresh_grounder
from tests.killing import run_processes, start_processes

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def head(random_twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained head: its masks have irregular shapes."""
    recipe = Recipe("qwen", str(random_twin), base_channels=4, enlarge_to=16, refiner="none")
    folder = tmp_path_factory.mktemp("head")
    return fresh_grounder(recipe).save_pretrained(folder, steps=0, protocol="standard")


@pytest.fixture(scope="module")
def plan(head: Path, drawn: Path) -> Plan:
    return Plan(heads=(str(head),), data=(f"refcoco:{drawn}@train",), batch_size=2)


@pytest.fixture(scope="module")
def lines() -> list[str]:
    """The progress of `finished`."""
    return []


@pytest.fixture(scope="module")
def finished(plan: Plan, lines: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A benchmark that was not stopped."""
    folder = tmp_path_factory.mktemp("finished")
    done = BenchmarkRun(plan, folder, progress=LineProgress(lines.append, every=0)).run()
    assert done is not None
    assert [path.name for path in done[1]] == [
        "report.html", "report.md", "report.csv", "report.tex", "report.json",
    ]  # fmt: skip
    return folder


def measurement_of(output: Path) -> Path:
    (folder,) = (output / "cells").iterdir()
    return folder


def rows_of(measurement: Path) -> list[dict[str, Any]]:
    """The rows without their seconds, which differ from run to run."""
    rows = [json.loads(line) for line in (measurement / "items.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def stop(monkeypatch: Patch, plan: Plan, output: Path, *, batches: int) -> None:
    """Run a benchmark that is interrupted after some batches."""
    measure = run.measure_batches

    def some(*arguments: Any, **named: Any) -> Any:
        yield from islice(measure(*arguments, **named), batches)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run, "measure_batches", some)
        with pytest.raises(KeyboardInterrupt):
            BenchmarkRun(plan, output).run()


def test_a_finished_benchmark_is_whole(finished: Path, plan: Plan, head: Path) -> None:
    folder = measurement_of(finished)
    assert folder.name == "qwen--refcoco@train"
    assert {path.name for path in folder.iterdir()} == {"items.jsonl", "result.json"}
    facts, rows = read_measurement(folder), list(read_rows(folder / "items.jsonl"))
    samples = open_source(plan.data[0])
    assert [row.item for row in rows] == [f"{sample.name}:0" for sample in samples]
    assert (facts.head, facts.protocol, facts.source) == (str(head), "standard", plan.data[0])
    assert len(facts.head_sha256 or "") == len(facts.weights_sha256 or "") == 64
    more = facts.model_extra or {}
    assert more["skipped"] == []
    assert more["versions"]["torch"]
    assert more["prompt"]
    scores = Evaluation()
    for row in rows:
        scores.add([row])
    assert more["scores"]["refined"] == scores.to_dict()["refined"]
    assert facts.seconds == pytest.approx(sum(row.seconds for row in rows), abs=1e-3)


def test_progress_shows_throughput(finished: Path, lines: list[str]) -> None:
    # a long name loses its middle
    shown = [line for line in lines if re.match(r"qwen on r\S+train: \d+/", line)]
    assert shown
    assert all(re.search(r", images/s .*, waiting \d+ %", line)
               for line in shown)  # fmt: skip


def test_a_finished_measurement_is_not_repeated(
    finished: Path, plan: Plan, monkeypatch: Patch
) -> None:
    written = (measurement_of(finished) / "result.json").read_bytes()
    (finished / "report.html").unlink()
    monkeypatch.setattr(Grounder, "from_pretrained", None)
    BenchmarkRun(plan, finished).run()
    assert (measurement_of(finished) / "result.json").read_bytes() == written
    assert (finished / "report.html").is_file()


def test_a_stop_loses_no_whole_row_and_changes_none(
    finished: Path, plan: Plan, tmp_path: Path, monkeypatch: Patch
) -> None:
    stop(monkeypatch, plan, tmp_path, batches=2)
    rows = measurement_of(tmp_path) / "rows-0-of-1.jsonl"
    lines = rows.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    # As if the process had been killed while it wrote the fourth line.
    rows.write_bytes(b"".join(lines[:3]) + lines[3][:-20])
    seen: list[list[list[int]]] = []
    measure = run.measure_batches

    def watched(method: Any, samples: Any, batches: Any, **named: Any) -> Any:
        seen.append(list(batches))
        return measure(method, samples, batches, **named)

    monkeypatch.setattr(run, "measure_batches", watched)
    BenchmarkRun(plan, tmp_path).run()
    assert seen[0][:2] == [[2, 3], [4, 5]]
    assert rows_of(measurement_of(tmp_path)) == rows_of(measurement_of(finished))


def test_a_folder_of_another_benchmark_is_refused(finished: Path, plan: Plan) -> None:
    other = plan.model_copy(update={"protocol": "flmm-paper", "limit": 3})
    with pytest.raises(UsageError) as error:
        BenchmarkRun(other, finished).run()
    assert str(error.value) == (
        f"The folder '{finished}' holds another benchmark.\n"
        "protocol: standard there, flmm-paper here; limit: None there, 3 here.\n"
        "Give another --output, or the command that started this benchmark."
    )


def test_rows_of_two_heads_are_never_mixed(
    plan: Plan, head: Path, random_twin: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    copy = Grounder.from_pretrained(head).save_pretrained(tmp_path / "head")
    plan = plan.model_copy(update={"heads": (str(copy),), "limit": 2})
    begun, whole = tmp_path / "begun", tmp_path / "whole"
    stop(monkeypatch, plan, begun, batches=1)
    BenchmarkRun(plan, whole).run()
    recipe = Recipe("qwen", str(random_twin), base_channels=4, enlarge_to=16, refiner="none")
    fresh_grounder(recipe).save_pretrained(copy)
    for output in (begun, whole):
        with pytest.raises(UsageError, match="is of another model or other settings") as error:
            BenchmarkRun(plan, output).run()
        assert "head_sha256: " in error.value.found


def test_samples_that_cannot_be_scored_are_listed_and_limited(
    plan: Plan, tmp_path: Path, monkeypatch: Patch
) -> None:
    data = FORMATS["refcoco"].write(tmp_path / "data", draw_images(4, seed=8))
    source = f"refcoco:{data}@train"
    samples = open_source(source)
    broken = samples[3].image_path
    whole = broken.read_bytes()
    lost = [place for place, sample in enumerate(samples) if sample.image_path == broken]
    broken.write_bytes(whole[:300])
    plan = plan.model_copy(update={"data": (source,)})
    output = tmp_path / "out"
    with pytest.raises(DataError) as error:
        BenchmarkRun(plan, output).run()
    assert error.value.asked == f"More of '{source}' cannot be used than --max-skipped 1% allows."
    assert f"Left out: 1 of {len(samples)} samples. The last is " in error.value.found
    assert str(broken) in error.value.found
    BenchmarkRun(plan, output, max_skipped=str(len(lost))).run()
    folder = measurement_of(output)
    listed = (read_measurement(folder).model_extra or {})["skipped"]
    assert [one["item"] for one in listed] == [samples[place].name for place in lost]
    assert len(rows_of(folder)) == len(samples) - len(lost)

    other = tmp_path / "repaired"
    with pytest.raises(DataError):
        BenchmarkRun(plan, other).run()
    broken.write_bytes(whole)
    BenchmarkRun(plan, other).run()
    assert len(rows_of(measurement_of(other))) == len(samples)


def test_a_head_is_trained_where_none_is_given(
    random_twin: Path, drawn: Path, tmp_path: Path
) -> None:
    source = f"refcoco:{drawn}@train"
    settings = {
        "model": str(random_twin), "data": [source], "val_data": [], "steps": 1, "batch_size": 1,
        "head.base_channels": 4, "head.enlarge_to": 16, "refiner": "none", "pictures": 0,
    }  # fmt: skip
    plan = Plan(backbones=("qwen",), data=(source,), limit=1, training=settings)
    BenchmarkRun(plan, tmp_path).run()
    facts = read_measurement(measurement_of(tmp_path))
    assert (facts.steps, facts.model) == (1, str(random_twin))
    assert Path(facts.head or "").is_relative_to(tmp_path / "heads" / "qwen")
    assert (facts.model_extra or {})["samples"] == 1


def test_plans_that_cannot_be_carried_out_are_refused(
    plan: Plan, head: Path, tmp_path: Path, capsys: Capture
) -> None:
    settings = {"data": list(plan.data), "val_data": [], "eval_data": []}
    lost = plan.model_copy(update={"backbones": ("llava_next",), "training": settings})
    with pytest.raises(UsageError) as error:
        BenchmarkRun(lost, tmp_path / "a").run()
    assert str(error.value) == (
        f"The head '{head}' is for a backbone that is not measured.\n"
        "It was trained with qwen; --backbone has llava_next.\n"
        "Add --backbone qwen, or leave the head out."
    )
    with pytest.raises(UsageError, match="Two heads are for qwen, model "):
        BenchmarkRun(
            plan.model_copy(update={"heads": (str(head), str(head))}), tmp_path / "b"
        ).run()
    assert main(["benchmark", "--output", str(tmp_path / "c")]) == 2
    assert capsys.readouterr().err == (
        "flmm: There is nothing to evaluate.\n"
        "Neither --backbone nor --head was given.\n"
        "Name at least one backbone (`flmm backbones` lists them), or a trained head.\n"
    )


def test_a_folder_is_locked(plan: Plan, tmp_path: Path) -> None:
    with hold(tmp_path, "measuring into"), pytest.raises(UsageError) as error:
        BenchmarkRun(plan, tmp_path).run()
    assert str(error.value) == (
        f"Another process is measuring into '{tmp_path}'.\n"
        "Wait for it or stop it, or give another folder."
    )
    BenchmarkRun(plan.model_copy(update={"limit": 1}), tmp_path).run()


# --- processes -------------------------------------------------------------------------------


@pytest.mark.multiprocess
@pytest.mark.slow
def test_processes_and_kills_change_no_row(head: Path, tmp_path: Path) -> None:
    data = FORMATS["refcoco"].write(tmp_path / "data", draw_images(10, seed=8, sentences=2))
    source = f"refcoco:{data}@train"

    def arguments(output: str) -> list[str]:
        return ["benchmark", "--head", str(head), "--data", source, "--batch-size", "3",
                "--output", str(tmp_path / output), "--device", "cpu"]  # fmt: skip

    assert run_processes(arguments("two"), 2, tmp_path / "two.log") == [0, 0]
    assert "report.html" in (tmp_path / "two.log").read_text()
    assert "report.html" not in (tmp_path / "two.log.1").read_text()
    assert (read_measurement(measurement_of(tmp_path / "two")).model_extra or {})["processes"] == 2

    killed = start_processes(arguments("killed"), 2, tmp_path / "killed.log")
    deadline = time.monotonic() + 200
    files = tmp_path / "killed" / "cells"
    while sum(path.read_bytes().count(b"\n") for path in files.glob("*/rows-*")) < 4:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    for process in killed:
        process.kill()
        process.join()
    folder = measurement_of(tmp_path / "killed")
    assert not (folder / "result.json").exists()
    kept = b"".join(path.read_bytes() for path in sorted(folder.glob("rows-*")))
    assert run_processes(arguments("killed"), 2, tmp_path / "killed.log") == [0, 0]

    assert run_processes(arguments("one"), 1, tmp_path / "one.log") == [0]
    one = rows_of(measurement_of(tmp_path / "one"))
    assert one == rows_of(measurement_of(tmp_path / "two")) == rows_of(folder)
    samples = open_source(source)
    assert [row["item"] for row in one] == [f"{sample.name}:0" for sample in samples]
    # What was whole when they were killed stands in the file as it was, seconds included.
    merged = (folder / "items.jsonl").read_text()
    for line in kept.splitlines(keepends=True):
        if line.endswith(b"\n"):
            for row in SampleRows.model_validate_json(line).rows:
                assert row.to_line() in merged


# --- docs/benchmark.md -----------------------------------------------------------------------

PAGE = (Path(__file__).parents[2] / "docs" / "benchmark.md").read_text()


def test_the_page_is_true(
    head: Path, drawn: Path, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "qwen").symlink_to(head)
    for name in ("shapes", "scenes"):
        FORMATS["refcoco"].write(tmp_path / name, draw_images(2, seed=3, split="val"))
    (line,) = re.findall(r"^flmm (.*)$", PAGE, re.M)
    several, single = re.findall(r"```python\n(.*?)```", PAGE, re.S)

    def small(text: str) -> str:
        return re.sub("shapes@t[a-z]+", "refcoco:shapes@val", text)

    assert main(shlex.split(small(line))) == 0
    assert "bench/report.html" in capsys.readouterr().out
    exec(compile(small(several), "docs/benchmark.md", "exec"), {})
    assert capsys.readouterr().out.count("qwen refcoco") == 2
    exec(compile(small(single), "docs/benchmark.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out) < 1
    (row,) = re.findall(r"```json\n(.*?)```", PAGE, re.S)
    PhraseRow.model_validate_json(row)
    listed = set(re.findall(r"^ +(?:DIR/)?([\w.]+\.jsonl?)\b", PAGE, re.M))
    assert listed == {"benchmark.json", "items.jsonl", "result.json"}
    there = {path.name for path in (tmp_path / "bench").rglob("*.json*")}
    assert listed | {"report.json"} == there
    facts = read_measurement(next((tmp_path / "bench" / "cells").iterdir()))
    for name in ("revision", "weights_sha256", "head_sha256", "prompt", "seed", "versions",
                 "command", "created", "skipped", "scores", "protocol", "dtype"):  # fmt: skip
        assert name in facts.model_dump(), name


def test_every_option_of_the_page_is_one(capsys: Capture) -> None:
    for command in (["benchmark"], ["report", "build"], ["report", "compare"]):
        assert main([*command, "--help"]) == 0
    shown = capsys.readouterr().out
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)):
        assert option in shown, option
