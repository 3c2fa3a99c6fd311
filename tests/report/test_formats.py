"""The table's other forms, and the published figures beside ours."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

import pytest

from flmm_core.evaluation.benchmark_folder import write_facts
from flmm_core.evaluation.scores import titles
from flmm_core.report.formats import to_csv, to_json, to_latex, to_markdown
from flmm_core.report.measurements import load_benchmark
from flmm_core.report.peers import load_peers
from flmm_core.report.table import BenchmarkReport, make_report, percent, said_p, signed
from tests.report.benchmarks import (
    facts,
    measurement_facts,
    random_rows,
    write_benchmark,
    write_measurement,
)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> BenchmarkReport:
    folder = tmp_path_factory.mktemp("benchmarks") / "two_systems"
    return make_report(load_benchmark(write_benchmark(folder, {"alpha": 0.4, "beta": 0.9})))


def test_csv_holds_every_figure_as_a_fraction(report: BenchmarkReport) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(report))))
    assert len(rows) == len(report.rows) == 4
    for found, row in zip(rows, report.rows, strict=True):
        facts_ = row.measurement.facts
        assert (found["backbone"], found["source"]) == (facts_.backbone, facts_.source)
        assert (found["protocol"], int(found["phrases"])) == ("standard", row.scores.phrases)
        for name in titles():
            score = row.scores[name]
            for end, value in (("", score.value), ("_low", score.low), ("_high", score.high)):
                assert found[name + end] == ("" if value is None else str(value))
        behind = row.behind
        assert found["to_best_p"] == ("" if behind is None else str(behind.p))


def test_json_holds_figures_slices_calibration_and_provenance(report: BenchmarkReport) -> None:
    content = json.loads(to_json(report))
    assert content["benchmark"] == report.benchmark.facts.model_dump(mode="json")
    for found, row in zip(content["cells"], report.rows, strict=True):
        assert found["scores"]["miou"]["value"] == row.scores["miou"].value
        assert found["provenance"]["head_sha256"] == "ab" * 32
        assert set(found["slices"]) == {"object_size", "distractors", "words", "slice"} | (
            {"tag"} & set(found["slices"])
        )
        assert sum(found["calibration"]["counts"]) == row.scores.phrases
        name, scores = next(iter(row.slicings[0].groups.items()))
        shown = found["slices"][row.slicings[0].key]["groups"][name]
        assert shown["scores"]["ciou"]["high"] == scores["ciou"].high


def test_markdown_is_a_table_of_one_width(report: BenchmarkReport) -> None:
    text = to_markdown(report)
    assert text.startswith("# Benchmark two\\_systems\n")
    rows = [line for line in text.split("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [re.sub(" +", " ", row) for row in rows]
    assert len(rows) == 2 + 4
    assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1
    ciou = report.rows[0].scores["ciou"]
    assert f"| {percent(ciou.value)} ({percent(ciou.low)}–{percent(ciou.high)}) |" in rows[2]
    assert rows[2].endswith("| best |")
    behind = report.rows[1].behind
    assert behind is not None
    assert signed(behind.difference) in rows[3]


def test_latex_is_a_tabular_of_one_width(report: BenchmarkReport) -> None:
    first = to_latex(report).split("\\end{tabular}")[0]
    rows = [line for line in first.splitlines() if line.endswith(r"\\")]
    columns = re.search(r"begin\{tabular\}\{(\w+)\}", first)
    assert columns is not None
    assert {len(re.split(r"(?<!\\)&", row)) for row in rows} == {len(columns[1])}
    assert "coarse cIoU" in rows[0]


def test_odd_names_break_no_table(tmp_path: Path) -> None:
    odd = 'a|b & 50% _x_ #1 {y} \\z ~^ <script> "é"'
    write_facts(tmp_path, facts())
    write_measurement(
        tmp_path / "cells/a", measurement_facts(odd, "shapes@test"), list(random_rows(0, 0.5, 3))
    )
    report = make_report(load_benchmark(tmp_path))
    assert r"a\|b & 50% \_x\_ \#1 {y} \\z ~^ \<script\>" in to_markdown(report)
    assert (
        r"a|b \& 50\% \_x\_ \#1 \{y\} \textbackslash{}z \textasciitilde{}\^{} "
        r"\ensuremath{<}script\ensuremath{>}"
    ) in to_latex(report)
    (row,) = csv.DictReader(io.StringIO(to_csv(report)))
    assert row["backbone"] == odd
    assert json.loads(to_json(report))["cells"][0]["system"] == odd


def test_p_values_and_differences_read_well() -> None:
    assert [said_p(p) for p in (0.0004, 0.012, 1.0)] == ["p < 0.001", "p = 0.012", "p = 1.000"]
    assert [signed(d) for d in (-0.012, 0.034, 0.0)] == ["−1.2", "+3.4", "+0.0"]
    assert [percent(value) for value in (None, 0.71249, 1.0)] == ["–", "71.2", "100.0"]


# --- published figures -----------------------------------------------------------------------


def test_published_figures_name_source_and_protocol() -> None:
    for peer in load_peers():
        assert peer.paper
        assert peer.protocol == ("flmm-paper" if peer.system.startswith("F-LMM") else "standard")
        assert all(0.5 < value < 0.9 for value in peer.figures.values())
    figures = {peer.system: peer.figures for peer in load_peers()}
    assert figures["GLaMM-7B"]["refcoco+@testB", "ciou"] == pytest.approx(0.646)
    assert figures["F-LMM, DeepSeek-VL-7B"]["png@val", "average_recall"] == pytest.approx(0.657)


def test_a_peer_of_another_protocol_says_so_in_its_row(report: BenchmarkReport) -> None:
    assert all(list(row.figures) == [("refcoco@val", "ciou")] for row in report.published)
    rows = {row.system: row for row in report.published}
    assert [row.system for row in report.published if row.ours] == ["beta", "alpha"]
    assert rows["F-LMM, DeepSeek-VL-7B"].note == (
        "measured under flmm-paper: not comparable with our rows under standard"
    )
    assert rows["GLaMM-7B"].note == ""
    assert "SAM 3 Agent" not in rows
    assert list(rows["beta"].figures.values()) == [report.rows[0].scores["ciou"].value]
    for text in (to_markdown(report), to_latex(report)):
        assert "measured under flmm-paper: not comparable" in text


def test_a_row_of_ours_on_other_data_of_the_same_name_says_so(report: BenchmarkReport) -> None:
    ours = next(row for row in report.published if row.ours)
    phrases = report.rows[0].scores.phrases
    assert ours.note == (
        f"refcoco@val has {phrases} phrases here, not the data set's 10834: "
        "a part of it, or other data"
    )


def test_average_recall_stands_beside_our_mean_iou(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.5}, ["png:/data@val"], protocol="flmm-paper")
    report = make_report(load_benchmark(folder))
    column = ("png@val", "average_recall")
    ours, peer = report.published
    assert ours.figures == {column: report.rows[0].scores["miou"].value}
    assert (peer.figures, peer.note) == ({column: 0.657}, "")


def test_data_that_nobody_published_on_has_no_published_figures(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.5}, ["shapes@test"])
    report = make_report(load_benchmark(folder))
    assert report.published == []
    assert "Published" not in to_markdown(report)
