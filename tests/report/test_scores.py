"""Every figure of a cell against a direct computation from its rows."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from flmm_core.errors import DataError
from flmm_core.evaluation.metrics import THRESHOLDS, MaskScores
from flmm_core.evaluation.metrics.calibration import BINS
from flmm_core.evaluation.phrase_rows import Item, read_items, write_facts
from flmm_core.report.cells import Cell, load_benchmark, load_cell
from flmm_core.report.scores import TITLES, score_rows
from flmm_core.report.slices import reliability, slice_rows
from flmm_core.report.table import make_report
from tests.report.benchmarks import (
    cell_facts,
    disc,
    facts,
    make_item,
    random_items,
    write_benchmark,
    write_cell,
)


def cell_of(folder: Path, items: list[Item]) -> Cell:
    return load_cell(write_cell(folder, cell_facts("alpha", "shapes@test"), items))


def direct(items: list[Item]) -> dict[str, float | None]:
    """The scores in plain Python."""
    masks = MaskScores()
    masks.add_counts([i.intersection for i in items], [i.union for i in items])
    coarse = [i for i in items if i.coarse_union is not None]
    boxes = [i.box_iou for i in items if i.box_iou is not None]
    points = [i.point_in_mask for i in items if i.point_in_mask is not None]
    absent = [i for i in items if not i.truth]
    present = [i for i in items if i.truth]
    found: dict[str, float | None] = {"ciou": masks.ciou, "miou": masks.miou}
    found |= {f"precision@{t}": masks.precision_at(t) for t in THRESHOLDS}
    found["coarse_ciou"] = sum(i.coarse_intersection or 0 for i in coarse) / sum(
        i.coarse_union or 0 for i in coarse
    )
    found["box@0.5"] = sum(iou >= 0.5 for iou in boxes) / len(boxes)
    found["point"] = sum(points) / len(points)
    if not absent:
        return found | dict.fromkeys(("giou", "no_target_accuracy", "target_accuracy"))
    found["giou"] = sum(i.intersection / i.union if i.union else 1 for i in items) / len(items)
    found["no_target_accuracy"] = sum(not i.predicted for i in absent) / len(absent)
    found["target_accuracy"] = sum(i.predicted > 0 for i in present) / len(present)
    return found


def check(scores: object, items: list[Item]) -> None:
    expected = direct(items)
    assert list(expected) == list(TITLES)
    for name, value in expected.items():
        assert scores[name].value == pytest.approx(value, abs=1e-12), name  # type: ignore[index]


@pytest.mark.parametrize("absent", [0.0, 0.3])
@pytest.mark.parametrize("seed", range(3))
def test_scores_are_those_of_the_rows(tmp_path: Path, seed: int, absent: float) -> None:
    items = list(random_items(seed, 0.6, 30, absent=absent))
    scores = score_rows(cell_of(tmp_path, items).columns)
    check(scores, items)
    assert (scores.phrases, scores.pictures) == (len(items), 30)
    for name in TITLES:
        score = scores[name]
        if score.value is not None:
            assert score.low is not None
            assert score.high is not None
            assert score.low <= score.value <= score.high


def test_slices_are_the_rows_that_they_name(tmp_path: Path) -> None:
    items = list(random_items(4, 0.6, 40, absent=0.1))
    by_key = {part.key: part for part in slice_rows(cell_of(tmp_path, items).columns)}

    def share(item: Item) -> float:
        return item.truth / (item.size[0] * item.size[1])

    def words(item: Item) -> int:
        return len(item.phrase.split())

    groups: dict[str, dict[str, Callable[[Item], bool]]] = {
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
        found = {part.name: part.scores for part in by_key[key].slices}
        expected = {name: [i for i in items if test(i)] for name, test in kinds.items()}
        assert {n: s.phrases for n, s in found.items()} == {
            n: len(rows) for n, rows in expected.items() if rows
        }
        for name, scores in found.items():
            masks = MaskScores()
            rows = expected[name]
            masks.add_counts([i.intersection for i in rows], [i.union for i in rows])
            assert scores["miou"].value == pytest.approx(masks.miou)
            assert scores["ciou"].value == pytest.approx(masks.ciou)
        assert by_key[key].left_out == 0


def test_unknown_rivals_are_counted_and_a_single_group_is_no_slicing(tmp_path: Path) -> None:
    truth = disc(20, 20, 9)
    items = [
        make_item(str(n), "a.png", truth, truth, distractors=None if n < 3 else n % 2, slice="x")
        for n in range(7)
    ]
    (slicing,) = slice_rows(cell_of(tmp_path, items).columns)
    assert (slicing.key, slicing.left_out) == ("distractors", 3)


def test_small_parts_are_counted_and_a_row_may_have_several_tags(tmp_path: Path) -> None:
    truth = disc(20, 20, 9)
    items = [
        make_item(f"{n}/{k}", "a.png", truth, truth, slice=f"part{n:02}", tags=("all", f"t{n % 2}"))
        for n in range(14)
        for k in range(20 - n)
    ]
    parts, tags = slice_rows(cell_of(tmp_path, items).columns)
    assert [part.name for part in parts.slices] == [f"part{n:02}" for n in range(12)]
    assert parts.left_out == 8 + 7
    assert [part.name for part in tags.slices] == ["all", "t0", "t1"]
    assert tags.left_out == 0


def test_calibration_compares_what_is_stated_with_what_is_right(tmp_path: Path) -> None:
    items = list(random_items(6, 0.6, 60))
    found = reliability(cell_of(tmp_path, items).columns)
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
    items = list(random_items(7, 0.5, 20))
    one = score_rows(cell_of(tmp_path / "one", items).columns)
    other = score_rows(cell_of(tmp_path / "other", items[::-1]).columns)
    for name in TITLES:
        pair = [[x for x in vars(s[name]).values() if x is not None] for s in (one, other)]
        assert pair[0] == pytest.approx(pair[1], rel=1e-12)


def test_without_probabilities_there_is_no_calibration(tmp_path: Path) -> None:
    truth = disc(20, 20, 9)
    assert reliability(cell_of(tmp_path, [make_item("a", "a", truth, truth)]).columns) is None


def test_nothing_predicted_where_nothing_is_true(tmp_path: Path) -> None:
    nothing = disc(0, 0, 0)
    columns = cell_of(tmp_path, [make_item(str(n), f"{n}", nothing, nothing) for n in range(3)])
    scores = score_rows(columns.columns)
    assert (scores["ciou"].value, scores["miou"].value) == (0.0, 0.0)
    assert (scores["giou"].value, scores["no_target_accuracy"].value) == (1.0, 1.0)
    assert scores["target_accuracy"].value is None


def test_silence_is_right_where_the_rest_is_ignored(tmp_path: Path) -> None:
    nothing, truth = disc(0, 0, 0), disc(20, 20, 9)
    items = [
        make_item("a", "a", truth, nothing, ignored=5),
        make_item("b", "b", truth, truth),
    ]
    scores = score_rows(cell_of(tmp_path, items).columns)
    assert (scores["giou"].value, scores["miou"].value) == (0.5, 0.5)
    assert scores["no_target_accuracy"].value is None
    plain = [item.model_copy(update={"ignored": 0}) for item in items]
    assert score_rows(cell_of(tmp_path / "plain", plain).columns)["giou"].value is None


def test_a_cell_without_rows_has_no_scores(tmp_path: Path) -> None:
    columns = cell_of(tmp_path, []).columns
    scores = score_rows(columns)
    assert (scores.phrases, scores.pictures) == (0, 0)
    assert all(scores[name].value is None for name in TITLES)
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
        items = list(read_items(row.cell.folder / "items.jsonl"))
        check(row.scores, items)
        assert row.best == "beta"
        assert row.is_best == (row.behind is None) == (row.system == "beta")
        assert row.cell.seconds_per_phrase == pytest.approx(np.mean([i.seconds for i in items]))
        if row.behind:
            top = next(r for r in report.rows if r.source == row.source and r.is_best)
            assert row.behind.difference == pytest.approx(
                (row.scores["ciou"].value or 0) - (top.scores["ciou"].value or 0)
            )


def test_systems_are_told_apart_by_what_differs(tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    rows = list(random_items(0, 0.5, 3))
    for number, (backbone, given) in enumerate(
        [
            ("alpha", {}),
            ("alpha", {"method": "box+sam"}),
            ("alpha", {"model": "hub/Big"}),
            ("beta", {"protocol": "flmm-paper"}),
        ]
    ):
        about = cell_facts(backbone, "shapes@test", **given)
        write_cell(tmp_path / "cells" / str(number), about, rows)
    assert list(load_benchmark(tmp_path).systems.values()) == [
        "alpha · tiny · head · standard",
        "alpha · tiny · box+sam · standard",
        "alpha · Big · head · standard",
        "beta · head · flmm-paper",
    ]


def test_sources_of_one_label_keep_their_paths(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.5}, ["jsonl:/a@val", "jsonl:/b@val"], pictures=2)
    assert list(load_benchmark(folder).sources.values()) == ["jsonl:/a@val", "jsonl:/b@val"]


def test_a_benchmark_without_a_finished_cell_is_refused(tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    (tmp_path / "cells" / "a").mkdir(parents=True)
    with pytest.raises(DataError) as caught:
        load_benchmark(tmp_path)
    assert str(caught.value) == (
        f"The benchmark {tmp_path} has no finished cell.\nUnfinished: a.\n"
        "Run `flmm benchmark` with this folder as --output to the end."
    )


def test_two_cells_of_the_same_are_refused(tmp_path: Path) -> None:
    write_facts(tmp_path, facts())
    for name in ("a", "b"):
        about = cell_facts("alpha", "shapes@test")
        write_cell(tmp_path / "cells" / name, about, list(random_items(0, 0.5, 2)))
    with pytest.raises(DataError, match=f"^The cells a and b of {tmp_path} are the same"):
        load_benchmark(tmp_path)
