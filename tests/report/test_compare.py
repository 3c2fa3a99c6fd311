"""Two measurements on the same phrases."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from flmm_core.cli import main
from flmm_core.errors import DataError, UsageError
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.evaluation.scores import titles
from flmm_core.report.compare import compare_folders, compare_measurements
from tests.report.benchmarks import measured, random_rows, write_benchmark


def test_differences_are_those_of_the_scores(tmp_path: Path) -> None:
    worse, better = list(random_rows(0, 0.4, 40)), list(random_rows(0, 0.9, 40))
    # Rows may stand in any order.
    found = compare_measurements(
        measured(tmp_path / "a", worse), measured(tmp_path / "b", better[::-1])
    )
    assert (found.phrases, found.pictures) == (len(worse), 40)
    assert (found.only_first, found.only_second) == ((), ())
    for name in ("ciou", "miou"):
        values = []
        for items in (worse, better):
            direct = Evaluation()
            direct.add(items)
            values.append(direct[name])
        score = found.scores[name]
        assert (score.first, score.second) == pytest.approx(tuple(values))
        assert score.difference == pytest.approx(values[1] - values[0])
        assert score.low is not None
        assert score.high is not None
        assert 0 < score.low < score.difference < score.high
        assert score.p < 0.001


def test_a_measurement_does_not_differ_from_itself(tmp_path: Path) -> None:
    items = list(random_rows(0, 0.4, 20))
    score = compare_measurements(
        measured(tmp_path / "a", items), measured(tmp_path / "b", items)
    ).scores["ciou"]
    assert (score.difference, score.low, score.high, score.p) == (0, 0, 0, 1)


def test_missing_phrases_are_counted_and_named(tmp_path: Path) -> None:
    items = list(random_rows(0, 0.4, 20))
    first, second = measured(tmp_path / "a", items[2:]), measured(tmp_path / "b", items[:-7])
    with pytest.raises(DataError) as caught:
        compare_measurements(first, second)
    a, b, last = tmp_path / "a", tmp_path / "b", [item.item for item in items[-7:-2]]
    assert str(caught.value) == (
        f"{a} and {b} were not measured on the same phrases.\n"
        f"{b} lacks 7: {', '.join(last)}, .... "
        f"{a} lacks 2: {items[0].item}, {items[1].item}. Both have {len(items) - 9}.\n"
        "Measure both on the same data, or compare what both have with --common."
    )
    found = compare_measurements(first, second, common=True)
    shared = compare_measurements(
        measured(tmp_path / "c", items[2:-7]), measured(tmp_path / "d", items[2:-7]), common=True
    )
    assert found.phrases == len(items) - 9
    assert found.only_second == (items[0].item, items[1].item)
    assert found.scores["ciou"].first == shared.scores["ciou"].first


def test_other_protocols_are_never_compared(tmp_path: Path) -> None:
    items = list(random_rows(0, 0.4, 3))
    first, second = (
        measured(tmp_path / "a", items),
        measured(tmp_path / "b", items, protocol="flmm-paper"),
    )
    with pytest.raises(UsageError) as caught:
        compare_measurements(first, second, common=True)
    assert str(caught.value) == (
        f"{tmp_path}/a and {tmp_path}/b cannot be compared.\n"
        "The first was measured under the protocol 'standard', the second under 'flmm-paper'.\n"
        "Measure both under one protocol."
    )


def test_other_truths_and_strangers_are_refused(tmp_path: Path) -> None:
    items = list(random_rows(0, 0.4, 5))
    grown = items[1].model_copy(update={"truth": items[1].truth + 3})
    first, second = (
        measured(tmp_path / "a", items),
        measured(tmp_path / "b", [items[0], grown, *items[2:]]),
    )
    with pytest.raises(DataError, match=f"\n1 of {len(items)}, first '{grown.item}'"):
        compare_measurements(first, second)
    others = [item.model_copy(update={"item": f"x{item.item}"}) for item in items]
    with pytest.raises(DataError, match="have no phrase in common"):
        compare_measurements(first, measured(tmp_path / "c", others), common=True)


def test_benchmarks_are_compared_pair_by_pair(tmp_path: Path) -> None:
    first = write_benchmark(tmp_path / "a", {"alpha": 0.5, "beta": 0.5}, ["x@1", "y@1"])
    second = write_benchmark(tmp_path / "b", {"alpha": 0.8, "gamma": 0.5}, ["x@1", "y@1"])
    found = compare_folders(first, second)
    assert [pair.source for pair in found.pairs] == ["x@1", "y@1"]
    assert found.only_first == ("beta--x@1", "beta--y@1")
    assert found.only_second == ("gamma--x@1", "gamma--y@1")
    strange = write_benchmark(tmp_path / "c", {"delta": 0.5}, ["x@1"])
    with pytest.raises(UsageError) as caught:
        compare_folders(strange, second)
    assert str(caught.value).splitlines()[1].startswith("The first has delta--x@1 (standard); ")
    with pytest.raises(UsageError, match="The first is a benchmark, the second a measurement"):
        compare_folders(first, second / "cells" / "gamma--x@1")
    with pytest.raises(DataError, match="is neither a benchmark nor a measurement"):
        compare_folders(tmp_path, second)


def test_the_command_prints_text_and_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = list(random_rows(0, 0.4, 20))
    a, b = str(tmp_path / "a"), str(tmp_path / "b")
    pair = compare_measurements(
        measured(tmp_path / "a", items),
        measured(tmp_path / "b", list(random_rows(0, 0.9, 20))[1:]),
        common=True,
    )
    assert main(["report", "compare", a, b]) == 3
    assert f"{b} lacks 1: {items[0].item}. {a} lacks none." in capsys.readouterr().err
    assert main(["report", "compare", a, b, "--common"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[:2] == [f"A {a}", f"B {b}"]
    assert shown[2] == f"shapes@test, protocol standard: {len(items) - 1} phrases of 20 images"
    assert shown[3].split() == ["A", "B", "B", "-", "A", "95", "%", "p"]
    for line, (name, score) in zip(shown[4:], pair.scores.items(), strict=False):
        title, figures = titles()[name], line.removeprefix(titles()[name]).split()
        assert line.startswith(f"{title} ")
        assert figures[:3] == [
            f"{100 * score.first:.2f}",
            f"{100 * score.second:.2f}",
            f"{100 * score.difference:+.2f}".replace("-", "−"),
        ]
    assert list(pair.scores) == [*titles()][:10]
    assert shown[14] == f"Only A has 1: {items[0].item}"
    assert main(["report", "compare", a, b, "--common", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["pairs"]
    assert found == json.loads(json.dumps(asdict(pair)))
