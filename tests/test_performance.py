"""The measurements: every one runs at its tiny size, and what they compare computes the same."""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
from dataclasses import replace
from importlib.metadata import requires
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from performance import __main__ as performance_main
from performance import (
    alternate,
    answering,
    cache,
    forecast,
    loading,
    models,
    overflow,
    pooling,
    recording,
    refining,
    roofline,
    sentences,
    serving,
    starting,
    tables,
    training,
)
from performance.__main__ import MEASUREMENTS, ON_GPU, main
from performance.alternate import BARE, ORIGINAL, OURS, Case, Comparison, Runs

Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]
PAGE = (Path(__file__).parents[1] / "docs" / "performance.md").read_text()


def in_process(case: Case, repeats: int) -> Comparison:
    """As `alternate.compare`, without processes, so without times and memory worth reading."""
    runs = {}
    for way in case.ways:
        workload = replace(case, images=min(2, case.images)).build()
        workload.prepare(way)
        runs[way] = Runs((0.5,), 1 << 20, workload.facts(workload.run(way)))
    return Comparison(case, runs)


@pytest.mark.parametrize("name", ON_GPU)
def test_every_workload_runs_in_every_way(
    name: str, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(alternate, "compare", in_process)
    assert main([name, "--size", "tiny", "--output", str(tmp_path)]) == 0
    found = json.loads((tmp_path / f"{name}.json").read_text())
    assert {"torch", "machine", "cpus"} <= found["environment"].keys()
    for row in found[name]:
        assert list(row["runs"]) == row["case"]["ways"]
        if name == "training":
            ours, original = (row["runs"][way]["facts"]["loss"] for way in (OURS, ORIGINAL))
            assert ours == pytest.approx(original, abs=1e-4)
        if name == "recording":
            assert row["runs"][OURS]["facts"]["result_bytes"] > 0
    printed = capsys.readouterr().out
    assert name == "overflow" or "| 1.00 |" in printed
    assert "nan" not in printed


@pytest.mark.parametrize(
    ("measure", "columns"),
    [(cache.measure, cache.COLUMNS), (loading.measure, loading.RATES)],
    ids=["cache", "loading"],
)
def test_epochs_and_loading_are_measured(measure: Any, columns: str) -> None:
    rows, text = measure("tiny", 1, 0.0)
    assert text.startswith(f"{columns}\n")
    if measure is cache.measure:
        (epochs,) = rows
        assert min(*epochs.without, *epochs.cached, epochs.building, epochs.bytes) > 0
    else:
        loaded, shuffled, buckets = rows
        assert loaded.read[0].images_per_second > loaded.whole[0].images_per_second > 0
        assert buckets.grids < shuffled.grids
        assert 0 < buckets.share < shuffled.share


def test_last_tokens_take_as_much_room_each_as_the_mean() -> None:
    rows, text = pooling.measure("tiny", 1, 0.0)
    assert text.startswith(f"{pooling.HEADER}\n")
    for mean, one, four in zip(rows[::3], rows[1::3], rows[2::3], strict=True):
        assert (one.bytes, four.bytes) == (2 * mean.bytes, 5 * mean.bytes)
        assert min(each.step for each in (mean, one, four)) > 0


@pytest.mark.multiprocess
def test_what_starts_is_measured_stage_by_stage() -> None:
    (row,), text = starting.measure("tiny", 1, math.inf)
    assert list(row.stages) == [*starting.STAGES, starting.IMAGE, starting.COMMAND, starting.PHRASE]
    cpu, _ = zip(*map(row.median, starting.STAGES), strict=True)
    assert min(cpu) > 0
    whole = row.median(starting.COMMAND)[0]
    assert 0.6 < sum(cpu) / whole < 1.6  # nothing is loaded that is no stage
    assert max(row.median(each)[0] for each in starting.WARM) < whole / 10
    page = (Path(__file__).parents[1] / "docs" / "ground.md").read_text()
    assert "By the clock, `flmm ground` took" in text
    names = re.findall(r"^\| (.+?) \|.*\| .*\|$", text, re.M)[1:]
    assert [name for name in names if f"| {name} |" not in page] == []
    assert starting.COLUMNS in page


@pytest.mark.multiprocess
def test_a_server_answers_many_clients() -> None:
    (one, many), text = serving.measure("tiny", 1, math.inf)
    assert text.startswith(f"{serving.COLUMNS}\n")
    assert one.statuses.keys() == {200}
    assert set(many.statuses) <= {200, 429}
    assert many.statuses[200] > 0
    assert 1 == one.batch < many.batch <= 16
    assert many.mebibytes[2] < many.mebibytes[0] + 200


@pytest.mark.parametrize("family", ["qwen", "deepseek_vl", "llava_next"])
def test_the_original_way_and_ours_record_the_same(family: str) -> None:
    case = next(case for case in recording.cases("tiny") if case.model == family)
    workload, traces = case.build(), {}
    for way in (OURS, ORIGINAL):
        workload.prepare(way)
        traces[way] = workload.run(way)
    for name in ("attention", "hidden"):
        ours, original = (getattr(traces[way], name) for way in (OURS, ORIGINAL))
        torch.testing.assert_close(ours, original, atol=1e-4, rtol=1e-4)


def test_masks_are_the_same_in_every_way() -> None:
    (case,) = refining.cases("tiny")
    workload = case.build()
    ours = workload.run(OURS)
    for way in case.ways:
        workload.prepare(way)
        torch.testing.assert_close(workload.run(way), ours, atol=1e-4, rtol=1e-4)


def test_sentences_share_their_prompt_or_not() -> None:
    (case,) = sentences.cases("tiny")
    batches = case.build().batches  # type: ignore[attr-defined]
    assert [len(batches[way]) for way in case.ways] == [1, 3, 3, 1, 3]
    assert batches[sentences.SEVERAL].backbone.captions is not None
    assert batches[sentences.APART].backbone.captions is None
    assert len(batches[sentences.APART].images) == 1


@pytest.mark.parametrize(
    ("name", "billions"),
    # the 3B model ties its output head, which random weights here do not
    [("qwen2.5-vl-3b", 4.07), ("qwen2.5-vl-7b", 8.29), ("llava-next-7b", 7.06)],
)
def test_real_sizes_are_the_published_ones(name: str, billions: float) -> None:
    config, _ = models.parts(models.REAL[name])
    with torch.device("meta"):
        vlm = transformers.AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    assert sum(value.numel() for value in vlm.parameters()) / 1e9 == pytest.approx(billions, 0.01)


def test_half_precision_that_overflows_is_refused() -> None:
    (case, *_) = overflow.cases("tiny")
    workload, found = case.build(), {}
    for way in (*case.ways, overflow.PLAIN):
        workload.prepare(way)
        found[way] = workload.facts(workload.run(way))
    plain, provoked = found[overflow.PLAIN], found[overflow.PROVOKED]
    assert (plain["not_finite"], plain["refused"]) == (0, False)
    assert 0 < plain["largest"] < torch.finfo(torch.float16).max
    assert provoked["not_finite"] > 0
    assert provoked["refused"]


def test_the_least_time_is_that_of_the_products_or_of_reading_the_weights(
    monkeypatch: Patch,
) -> None:
    layer = torch.nn.Linear(300, 200, bias=False)
    for best, least in (((1e6, 1e12), 12.0), ((1e12, 4e3), 60.0)):
        monkeypatch.setattr(roofline, "machine", lambda *_, best=best: roofline.Machine(*best))
        found = roofline.least_seconds(lambda: layer(torch.ones(100, 300)), layer)
        assert found["operations"] == 2 * 100 * 300 * 200
        assert found["least_seconds"] == pytest.approx(least)


def test_aims_name_the_worst_figure() -> None:
    def row(bare: float, ours: float, original: float) -> Comparison:
        least = {"operations": 1.0, "least_seconds": 0.4}
        runs = {BARE: Runs((bare,), 0, least), OURS: Runs((ours,)), ORIGINAL: Runs((original,))}
        return Comparison(Case("", (BARE, OURS, ORIGINAL)), runs)

    text = recording.aims([row(1.0, 1.05, 6.0), row(1.0, 0.5, 2.0)])
    assert "* ours / bare: 1.05 at worst; aim at most 1.10, held" in text
    assert "* original-way / ours: 4.00 at worst; aim at least 5.00, missed" in text
    assert "* least / ours: 0.38 at worst; aim at least 0.50, missed" in text
    assert "not out of memory" in text
    lost = row(1.0, 1.0, 6.0)
    failed = Comparison(lost.case, {**lost.runs, OURS: Runs(failed="out of memory: 80 GB")})
    text = recording.aims([lost, failed])
    assert "at least 5.00, held, 1 not measured" in text
    assert "out of memory: 80 GB" in text


def test_the_help_names_all_wheels_that_a_machine_with_transformers_may_lack() -> None:
    def needed(name: str, known: set[str]) -> set[str]:
        if name not in known:
            known.add(name)
            for each in map(Requirement, requires(name) or ()):
                if each.marker is None or each.marker.evaluate({"extra": ""}):
                    needed(canonicalize_name(each.name), known)
        return known

    given: set[str] = set()
    for name in ("torch", "torchvision", "transformers", "pluggy"):
        needed(name, given)
    lacking = needed("flmm", set()) - given - {"flmm"}
    assert {"platformdirs", "pycocotools", "segment-anything"} <= lacking
    assert lacking <= set(performance_main.__doc__.split())


def test_real_sizes_run_in_bfloat16_on_a_gpu() -> None:
    for module in (recording, training, refining, sentences):
        for case in module.cases("real"):
            assert (case.dtype, case.device) == ("bfloat16", "cuda")
            assert Case.from_json(case.to_json()) == case


def test_a_rehearsal_on_a_cpu_runs_all_that_runs_on_a_gpu(
    tmp_path: Path, monkeypatch: Patch
) -> None:
    sizes: list[str] = []
    for name in ON_GPU:
        monkeypatch.setattr(
            f"performance.{name}.measure", lambda size, *_: ([], sizes.append(size))
        )
    assert main(["gpu", "--size", "tiny", "--output", str(tmp_path)]) == 0
    assert set(json.loads((tmp_path / "gpu.json").read_text())) == {"environment", *ON_GPU}
    assert sizes == ["tiny"] * len(ON_GPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="refused only without a GPU")
def test_real_sizes_are_refused_without_a_gpu(capsys: Capture) -> None:
    assert main(["gpu"]) == 3
    assert capsys.readouterr().err.startswith("Published sizes need a GPU.\n")


def test_no_case_starts_out_of_time(monkeypatch: Patch, capsys: Capture) -> None:
    monkeypatch.setattr(alternate, "compare", in_process)
    assert alternate.compare_all(refining.cases("tiny"), 1, until=0.0) == []
    assert "Skipped, out of time: performance.refining" in capsys.readouterr().err


def test_a_failed_way_has_no_figures() -> None:
    failed = Runs((1.0,), 5).add({"failed": "out of memory"})
    row = Comparison(Case("", ("a", "b")), {"a": Runs((2.0, 1.0, 9.0), 7), "b": failed})
    assert row.median("a") == 2
    assert tables.seconds(row.median("b")) == tables.ratio(row.ratio("b", "a")) == "–"
    assert tables.mib(row.peak("b")) == "–"


@pytest.mark.slow
@pytest.mark.multiprocess
def test_ways_run_in_processes_of_their_own() -> None:
    case = Case("performance.refining:Refining", (OURS, ORIGINAL), phrases=2)
    row = alternate.compare(case, repeats=2)
    for runs in row.runs.values():
        assert len(runs.seconds) == 2
        assert runs.median > 0
        assert runs.peak_bytes > 0
        assert runs.facts == {"masks": 2}


def test_recorded_answers_are_those_of_generate(monkeypatch: Patch) -> None:
    monkeypatch.setattr(answering, "NEW_TOKENS", 5)
    row = answering.answering("qwen", 1)  # compares the tokens
    assert min(*row.bare, *row.recorded, *row.rows) > 0


# --- docs/performance.md ---------------------------------------------------------------------


def test_the_commands_of_the_page_exist(monkeypatch: Patch, tmp_path: Path) -> None:
    for name in MEASUREMENTS:
        monkeypatch.setattr(f"performance.{name}.measure", lambda *given: ([], ""))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    commands = re.findall(r"^python -m performance (.*?)(?:\s+#.*)?$", PAGE, re.M)
    assert {*MEASUREMENTS, "gpu"} <= set(commands)
    for words in map(shlex.split, commands):
        assert main([*words, "--output", str(tmp_path)]) == (3 if words == ["gpu"] else 0)


@pytest.mark.parametrize(
    "columns",
    [
        recording.TIMES,
        recording.MEMORY,
        overflow.COLUMNS,
        answering.TABLE,
        training.COLUMNS,
        refining.COLUMNS,
        sentences.COLUMNS,
        cache.COLUMNS,
        loading.RATES,
        loading.PADDING,
        forecast.COLUMNS,
        serving.COLUMNS,
    ],
)
def test_the_tables_of_the_page_have_the_columns_that_are_printed(columns: str) -> None:
    assert f"{columns}\n" in PAGE
