"""Every figure of a measurement against a direct computation from its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flmm_core.errors import DataError
from flmm_core.evaluation.benchmark_folder import write_facts
from flmm_core.evaluation.phrase_rows import PhraseRow, read_rows
from flmm_core.evaluation.reliability import BINS
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.evaluation.scores import titles
from flmm_core.report.measurements import load_benchmark
from flmm_core.report.scores import reliability, score_rows, slice_rows
from flmm_core.report.table import make_report
from tests.report.benchmarks import (
    disc,
    facts,
    make_row,
    measured,
    measurement_facts,
    random_rows,
    write_benchmark,
    write_measurement,
)


def running(rows: list[PhraseRow]) -> Evaluation:
    found = Evaluation()
    found.add(rows)
    return found


@pytest.mark.parametrize("absent", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_rows(tmp_path: Path, seed: int, absent: float) -> None:
    items = list(random_rows(seed, 0.6, 30, absent=absent))
    scores = score_rows(measured(tmp_path, items).columns)
    expected = running(items)
    assert set(scores.scores) == set(titles())
    for name in titles():
        shown = name not in ("giou", "no_target_accuracy", "target_accuracy") or absent
        value = expected[name] if shown else None
        assert scores[name].value == pytest.approx(value, abs=1e-12), name
    assert (scores.phrases, scores.pictures) == (len(items), 30)
    for name in titles():
        score = scores[name]
        if score.value is not None:
            assert score.low is not None
            assert score.high is not None
            assert score.low <= score.value <= score.high


def test_slices_are_the_rows_that_they_name(tmp_path: Path) -> None:
    items = list(random_rows(4, 0.6, 40, absent=0.1))
    by_key = {part.key: part for part in slice_rows(measured(tmp_path, items).columns)}

    def share(item: PhraseRow) -> float:
        return item.truth / (item.size[0] * item.size[1])

    def words(item: PhraseRow) -> int:
        return len(item.phrase.split())

    groups: dict[str, dict[str, Callable[[PhraseRow], bool]]] = {
        "object_size": {
            "no target": lambda i: i.truth == 0,
            "< 1 %": lambda i: 0 < share(i) < 0.01,
            "1–5 %": lambda i: 0.01 <= share(i) < 0.05,
            "5–20 %": lambda i: 0.05 <= share(i) < 0.2,
            "≥ 20 %": lambda i: share(i) >= 0.2,
        },
        "distractors": {
            "0": lambda i: i.distractors == 0,
            "1": lambda i: i.distractors == 1,
            "2": lambda i: i.distractors == 2,
            "3 +": lambda i: (i.distractors or 0) >= 3,
        },
        "words": {
            "1–2": lambda i: words(i) <= 2,
            "3–4": lambda i: 3 <= words(i) <= 4,
            "5–7": lambda i: 5 <= words(i) <= 7,
            "8 +": lambda i: words(i) >= 8,
        },
        "slice": {
            "plain": lambda i: i.slice == "plain",
            "relation": lambda i: i.slice == "relation",
        },
    }
    assert list(by_key) == list(groups)
    for key, kinds in groups.items():
        found = by_key[key].groups
        expected = {name: [i for i in items if test(i)] for name, test in kinds.items()}
        assert {n: s.phrases for n, s in found.items()} == {
            n: len(rows) for n, rows in expected.items() if rows
        }
        for name, scores in found.items():
            direct = running(expected[name])
            assert scores["miou"].value == pytest.approx(direct["miou"])
            assert scores["ciou"].value == pytest.approx(direct["ciou"])
        assert by_key[key].left_out == 0


def test_unknown_rivals_are_counted_and_a_single_group_is_no_slicing(tmp_path: Path) -> None:
    truth = disc(20, 20, 9)
    items = [
        make_row(str(n), "a.png", truth, truth, distractors=None if n < 3 else n % 2, slice="x")
        for n in range(7)
    ]
    (slicing,) = slice_rows(measured(tmp_path, items).columns)
    assert (slicing.key, slicing.left_out) == ("distractors", 3)


def test_small_parts_are_counted_and_a_row_may_have_several_tags(tmp_path: Path) -> None:
    truth = disc(20, 20, 9)
    items = [
        make_row(f"{n}/{k}", "a.png", truth, truth, slice=f"part{n:02}", tags=("all", f"t{n % 2}"))
        for n in range(14)
        for k in range(20 - n)
    ]
    parts, tags = slice_rows(measured(tmp_path, items).columns)
    assert list(parts.groups) == [f"part{n:02}" for n in range(12)]
    assert parts.left_out == 8 + 7
    assert list(tags.groups) == ["all", "t0", "t1"]
    assert tags.left_out == 0


def test_calibration_compares_what_is_stated_with_what_is_right(tmp_path: Path) -> None:
    items = list(random_rows(6, 0.6, 60))
    found = reliability(measured(tmp_path, items).columns)
    assert found is not None
    error = 0.0
    for number in range(BINS):
        rows = [i for i in items if min(int((i.probability or 0) * BINS), BINS - 1) == number]
        assert found.counts[number] == len(rows)
        if rows:
            right = np.mean([i.union > 0 and 2 * i.intersection >= i.union for i in rows])
            stated = np.mean([i.probability for i in rows])
            assert found.right[number] == pytest.approx(right)
            assert found.stated[number] == pytest.approx(stated)
            error += abs(right - stated) * len(rows) / len(items)
    assert found.error == pytest.approx(error)


def test_the_order_of_the_rows_changes_no_figure(tmp_path: Path) -> None:
    items = list(random_rows(7, 0.5, 20))
    one = score_rows(measured(tmp_path / "one", items).columns)
    other = score_rows(measured(tmp_path / "other", items[::-1]).columns)
    for name in titles():
        pair = [[x for x in vars(s[name]).values() if x is not None] for s in (one, other)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-12)


def test_without_probabilities_there_is_no_calibration(tmp_path: Path) -> None:
    truth = disc(20, 20, 9)
    assert reliability(measured(tmp_path, [make_row("a", "a", truth, truth)]).columns) is None


def test_nothing_predicted_where_nothing_is_true(tmp_path: Path) -> None:
    nothing = disc(0, 0, 0)
    columns = measured(tmp_path, [make_row(str(n), f"{n}", nothing, nothing) for n in range(3)])
    scores = score_rows(columns.columns)
    assert (scores["ciou"].value, scores["miou"].value) == (0.0, 0.0)
    assert (scores["giou"].value, scores["no_target_accuracy"].value) == (1.0, 1.0)
    assert scores["target_accuracy"].value is None


def test_silence_is_right_where_the_rest_is_ignored(tmp_path: Path) -> None:
    nothing, truth = disc(0, 0, 0), disc(20, 20, 9)
    items = [
        make_row("a", "a", truth, nothing, ignored=5),
        make_row("b", "b", truth, truth),
    ]
    scores = score_rows(measured(tmp_path, items).columns)
    assert (scores["giou"].value, scores["miou"].value) == (0.5, 0.5)
    assert scores["no_target_accuracy"].value is None
    plain = [item.model_copy(update={"ignored": 0}) for item in items]
    assert score_rows(measured(tmp_path / "plain", plain).columns)["giou"].value is None


def test_a_measurement_without_rows_has_no_scores(tmp_path: Path) -> None:
    columns = measured(tmp_path, []).columns
    scores = score_rows(columns)
    assert (scores.phrases, scores.pictures) == (0, 0)
    assert all(scores[name].value is None for name in titles())
    assert slice_rows(columns) == ()


def test_the_table_is_in_order_and_names_the_best(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.2, "beta": 0.9, "gamma": 0.6})
    report = make_report(load_benchmark(folder))
    assert [(row.source, row.system) for row in report.rows] == [
        (source, system)
        for source in ("refcoco@val", "shapes@test")
        for system in ("beta", "gamma", "alpha")
    ]
    assert next(iter(report.systems.items())) == ("beta", "standard")
    for row in report.rows:
        items = list(read_rows(row.measurement.folder / "items.jsonl"))
        assert row.scores["ciou"].value == pytest.approx(running(items)["ciou"])
        assert row.best == "beta"
        assert row.is_best == (row.behind is None) == (row.system == "beta")
        assert row.measurement.seconds_per_phrase == pytest.approx(
            np.mean([i.seconds for i in items])
        )
        if row.behind:
            top = next(r for r in report.rows if r.source == row.source and r.is_best)
            assert row.behind.difference == pytest.approx(
                (row.scores["ciou"].value or 0) - (top.scores["ciou"].value or 0)
            )


def test_systems_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    rows = list(random_rows(0, 0.5, 3))
    for number, (backbone, given) in enumerate(
        [
            ("alpha", {}),
            ("alpha", {"method": "box+sam"}),
            ("alpha", {"model": "hub/Big"}),
            ("beta", {"protocol": "flmm-paper"}),
        ]
    ):
        about = measurement_facts(backbone, "shapes@test", **given)
        write_measurement(tmp_path / "cells" / str(number), about, rows)
    assert list(load_benchmark(tmp_path).systems.values()) == [
        "alpha · tiny · head · standard",
        "alpha · tiny · box+sam · standard",
        "alpha · Big · head · standard",
        "beta · head · flmm-paper",
    ]


def test_sources_of_one_label_keep_their_paths(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.5}, ["jsonl:/a@val", "jsonl:/b@val"], pictures=2)
    assert list(load_benchmark(folder).sources.values()) == ["jsonl:/a@val", "jsonl:/b@val"]


def test_a_benchmark_without_a_finished_measurement_is_refused(tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    (tmp_path / "cells" / "a").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        load_benchmark(tmp_path)
    assert str(caught.value) == (
        f"The benchmark {tmp_path} has no finished measurement.\nUnfinished: a.\n"
        "Run `flmm benchmark` with this folder as --output to the end."
    )


def test_the_same_measurement_twice_is_refused(tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    for name in ("a", "b"):
        about = measurement_facts("alpha", "shapes@test")
        write_measurement(tmp_path / "cells" / name, about, list(random_rows(0, 0.5, 2)))
    with pytest.raises(DataError, match=f"^a and b in {tmp_path} are the same measurement"):
        load_benchmark(tmp_path)
