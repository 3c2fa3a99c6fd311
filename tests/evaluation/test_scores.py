"""Every score of the table against its published definition, mask by mask."""

from __future__ import annotations

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_core.cli import main
from flmm_core.evaluation.phrase_rows import PhraseRow
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.evaluation.scores import SCORES, SUBSETS, THRESHOLDS, Score, recall_levels, titles
from flmm_core.report.page import build_report
from flmm_core.report.scores import score_rows
from tests.evaluation.cases import CASES, random_masks, row_of, rows_of
from tests.report.benchmarks import measured, write_benchmark

RECALL_THRESHOLDS = np.arange(0, 1, 0.00001)


def evaluated(rows: list[PhraseRow]) -> Evaluation:
    found = Evaluation()
    found.add(rows)
    return found


def mean(values: list[Any]) -> float:
    return float(sum(values, Fraction(0)) / len(values)) if values else math.nan


def by_definition(rows: list[PhraseRow]) -> dict[str, float]:
    """All scores, each from the words of its paper."""

    def iou(intersection: int | None, union: int | None, empty: int = 0) -> Fraction:
        return Fraction(intersection or 0, union) if union else Fraction(empty)

    def overall(pairs: list[tuple[int, int]]) -> float:
        total = sum(union for _, union in pairs)
        return sum(both for both, _ in pairs) / (total or 1) if pairs else math.nan

    coarse = [row for row in rows if row.coarse_union is not None]
    present = [row for row in rows if row.truth]
    absent = [row for row in rows if not row.truth]
    boxes = [row.box_iou for row in rows if row.box_iou is not None]
    points = [row.point_in_mask for row in rows if row.point_in_mask is not None]
    ious = [iou(row.intersection, row.union) for row in rows]
    coarse_ious = [iou(row.coarse_intersection, row.coarse_union) for row in coarse]
    target_ious = [iou(row.intersection, row.union) for row in present]
    # GRES: 1 for a recognized absence, 0 for a missed one and for a wrong "none", else the IoU.
    gres = [
        (Fraction(not row.predicted) if not row.truth else iou(row.intersection, row.union))
        for row in rows
    ]
    return {
        "ciou": overall([(row.intersection, row.union) for row in rows]),
        "miou": mean(ious),
        **{f"precision@{t}": mean([v >= Fraction(str(t)) for v in ious]) for t in THRESHOLDS},
        "coarse_ciou": overall(
            [(row.coarse_intersection or 0, row.coarse_union or 0) for row in coarse]
        ),
        "coarse_miou": mean(coarse_ious),
        **{
            f"coarse_precision@{t}": mean([v >= Fraction(str(t)) for v in coarse_ious])
            for t in THRESHOLDS
        },
        "box@0.5": mean([value >= 0.5 for value in boxes]),
        "point": mean(points),
        "giou": mean(gres),
        "no_target_accuracy": mean([row.predicted == 0 for row in absent]),
        "target_ciou": overall([(row.intersection, row.union) for row in present]),
        "target_accuracy": mean([row.predicted > 0 for row in present]),
        **{
            f"target_precision@{t}": mean([v >= Fraction(str(t)) for v in target_ious])
            for t in THRESHOLDS
        },
    }


def average_recalls(rows: list[PhraseRow]) -> dict[str, float]:
    """Of PNG's subsets: the left Riemann sum of recall, counted afresh at every threshold."""
    png = [row for row in rows if set(row.tags) & {"thing", "stuff", "plural", "singular"}]
    members = {
        "all": png,
        "thing": [row for row in png if {"thing", "plural"} & set(row.tags)],
        "stuff": [row for row in png if not {"thing", "plural"} & set(row.tags)],
        "singular": [row for row in png if "plural" not in row.tags],
        "plural": [row for row in png if "plural" in row.tags],
    }
    found = {}
    for subset, counted in members.items():
        ious = np.array([row.intersection / max(row.union, 1) for row in counted])
        recall = (ious[:, None] >= RECALL_THRESHOLDS[:-1]).mean(axis=0) if counted else math.nan
        found[f"average_recall_{subset}"] = float((np.diff(RECALL_THRESHOLDS) * recall).sum())
    return found


def random_rows(rng: np.random.Generator) -> list[PhraseRow]:
    pred, truth = random_masks(rng)
    ignore = rng.random(pred.shape) < rng.choice([0.0, 0.3, 1.0], size=(len(pred), 1, 1))
    rows = rows_of(pred, truth, ignore)
    for place, row in enumerate(rows):
        tags = [tag for tag in (*SUBSETS[1:], "all", "odd") if rng.random() < 0.2]
        union = int(rng.integers(0, 9))
        coarse = (int(rng.integers(0, union + 1)), union) if rng.random() < 0.8 else (None, None)
        target = {"box_iou": float(rng.choice([0.5, rng.random()])), "point_in_mask": True}
        rows[place] = row.model_copy(
            update={
                "item": f"a:{place}",
                "slice": str(rng.choice(["", "plain", "small"])),
                "tags": tuple(tags),
                "coarse_intersection": coarse[0],
                "coarse_union": coarse[1],
                "probability": float(rng.random()),
                **(target if row.truth else {}),
            }
        )
    return rows


def test_scores_are_those_of_the_definitions_in_a_thousand_cases() -> None:
    rng = np.random.default_rng(0)
    for case in range(CASES):
        rows = random_rows(rng)
        found = evaluated(rows)
        expected = by_definition(rows)
        if case % 8 == 0:  # it is slow by its definition
            expected |= average_recalls(rows)
            assert set(expected) == set(SCORES)
        assert {name: found[name] for name in expected} == pytest.approx(
            expected, abs=1e-9, nan_ok=True
        )
        for name in ("plain", "small"):
            part = [row for row in rows if row.slice == name]
            assert (name in found.slices) == bool(part)
            if part:
                assert found.slices[name] == evaluated(part).whole
        for tag in {tag for row in rows for tag in row.tags}:
            assert found.tags[tag] == evaluated([row for row in rows if tag in row.tags]).whole


def test_the_order_of_the_rows_changes_no_bit() -> None:
    rng = np.random.default_rng(1)
    for _ in range(100):
        rows = [row for _ in range(4) for row in random_rows(rng)]
        shuffled = [rows[place] for place in rng.permutation(len(rows))]
        assert json.dumps(evaluated(rows).to_dict()) == json.dumps(evaluated(shuffled).to_dict())


def test_a_float_sum_would_depend_on_the_order() -> None:
    """What the exact sums are for: these IoUs, added as floats, give two sums."""
    pairs = [(1, 10), (1, 5), (3, 10)]
    assert sum(i / u for i, u in pairs) != sum(i / u for i, u in reversed(pairs))
    rows = [row_of(*pair) for pair in pairs]
    assert evaluated(rows)["miou"] == evaluated(rows[::-1])["miou"] == float(Fraction(6, 10) / 3)


@settings(deadline=None)
@given(st.lists(st.integers(0, 1000).map(lambda u: (u // 3, u)), min_size=1, max_size=100))
def test_a_mean_is_within_2_to_the_minus_64_of_the_true_one(pairs: list[tuple[int, int]]) -> None:
    sums = evaluated([row_of(*pair) for pair in pairs]).whole
    true = sum((Fraction(i, u) if u else Fraction(0) for i, u in pairs), Fraction(0)) / len(pairs)
    kept = Fraction(sums.numerators["miou"], sums.denominators["miou"])
    assert 0 <= true - kept < Fraction(1, 2**64)


def test_sums_stay_exact_and_small() -> None:
    big = 2**40 + 1
    sums = evaluated([row_of(big, big + 2)] * 1000).whole
    assert (sums.numerators["ciou"], sums.denominators["ciou"]) == (1000 * big, 1000 * (big + 2))
    numbers = [*sums.rows.values(), *sums.numerators.values(), *sums.denominators.values()]
    assert max(number.bit_length() for number in numbers) < 128
    assert len(numbers) <= 3 * len(SCORES)


# --- average recall --------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(0, 10**5), st.integers(0, 10**5), st.booleans())
def test_ties_with_a_threshold_fall_as_published(i: int, u: int, on_threshold: bool) -> None:
    """With a union of 100,000 every IoU lies on a threshold, or beside it by its last bit."""
    i, u = min(i, u), 10**5 if on_threshold else max(i, u)
    assert recall_levels(i, u) == (i / max(u, 1) >= RECALL_THRESHOLDS[:-1]).sum()


def test_every_threshold_falls_as_published() -> None:
    levels = [recall_levels(i, 10**5) for i in range(10**5 + 1)]
    ious = np.arange(10**5 + 1) / 10**5
    assert levels == np.searchsorted(RECALL_THRESHOLDS[:-1], ious, side="right").tolist()


def test_the_ends_of_the_recall_scale() -> None:
    rows = [
        row_of(7, 7, tags=("thing", "singular")),
        row_of(0, 7, tags=("stuff",)),
        row_of(0, 0, tags=("plural",)),
    ]
    found = evaluated(rows)
    assert found["average_recall_singular"] == pytest.approx((0.99999 + 0.00001) / 2)
    assert found["average_recall_stuff"] == found["average_recall_plural"] == 1e-5
    assert found["average_recall_thing"] == pytest.approx(0.5)
    recall = evaluated(rows[:1]).to_dict()["recall"]
    assert [name for name in SUBSETS if recall["average_recall"][name] is None] == [
        "stuff",
        "plural",
    ]
    assert recall["masks"] == {"all": 1, "thing": 1, "stuff": 0, "singular": 1, "plural": 0}


# --- JSON ------------------------------------------------------------------------------------


def test_the_masks_in_json() -> None:
    rows = [
        row_of(9, 10, slice="plain"),  # exactly on the threshold
        row_of(0, 10, slice="plain"),
        row_of(0, 1, slice="small"),
        row_of(0, 0),
    ]
    plain = {"ciou": 0.45, "miou": 0.45, **{f"precision@{t}": 0.5 for t in THRESHOLDS}}
    none = {"ciou": 0.0, "miou": 0.0, **{f"precision@{t}": 0.0 for t in THRESHOLDS}}
    found = json.loads(json.dumps(evaluated(rows).to_dict()))
    assert found["refined"] == {
        "ciou": 9 / 21,
        "miou": 0.225,
        **{f"precision@{t}": 0.25 for t in THRESHOLDS},
        "masks": 4,
        "intersection": 9,
        "union": 21,
        "slices": {
            "plain": {**plain, "masks": 2, "intersection": 9, "union": 20},
            "small": {**none, "masks": 1, "intersection": 0, "union": 1},
        },
    }
    nothing = dict.fromkeys(plain) | {"masks": 0, "intersection": 0, "union": 0}
    assert found["coarse"] == nothing
    assert evaluated([]).to_dict()["refined"] == nothing
    assert found["box"] == {"accuracy": None, "masks": 0, "hits": 0}
    hit = evaluated([row_of(1, 2, box_iou=0.5, point_in_mask=True)]).to_dict()
    assert hit["box"] == hit["point"] == {"accuracy": 1.0, "masks": 1, "hits": 1}


def test_one_of_each_kind_of_grefcoco() -> None:
    """A recognized absence, a mask for nothing, an answer of IoU 1/2 and a wrong "none"."""
    pred, truth = np.zeros((2, 4, 1, 4), dtype=bool)
    pred[1, 0, :3] = True
    truth[2] = truth[3] = True
    pred[2, 0, :2] = True
    assert evaluated(rows_of(pred, truth)).to_dict()["generalised"] == {
        "giou": 1.5 / 4,
        "ciou": 2 / (3 + 4 + 4),
        "n_acc": 0.5,
        "t_acc": 0.5,
        "target_ciou": 2 / 8,
        "precision@0.5": 0.5,
        **{f"precision@{t}": 0.0 for t in (0.6, 0.7, 0.8, 0.9)},
        "masks": 4,
        "intersection": 2,
        "union": 11,
        "no_target": 2,
        "targets": 2,
    }
    only_absent = evaluated(rows_of(pred[:1], truth[:1])).to_dict()["generalised"]
    assert (only_absent["giou"], only_absent["n_acc"], only_absent["ciou"]) == (1, 1, 0)
    assert only_absent["t_acc"] is None


def test_silence_where_nothing_is_counts_one_in_reasonseg_unlike_in_referring() -> None:
    nothing = np.zeros((1, 1, 4), dtype=bool)
    rows = rows_of(nothing, nothing) + rows_of(~nothing, ~nothing, ~nothing)
    found = evaluated(rows).to_dict()
    assert found["reasoning"] == {
        "giou": 1, "ciou": 0, "masks": 2, "intersection": 0, "union": 0,
    }  # fmt: skip
    assert (found["refined"]["miou"], found["refined"]["ciou"]) == (0, 0)


# --- one more score --------------------------------------------------------------------------


def test_a_new_score_is_one_entry_of_the_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = Score("mean share of the truth that is found", lambda r: (r.intersection, r.truth),
                  "recall of pixels")  # fmt: skip
    monkeypatch.setitem(SCORES, "pixel_recall", extra)
    rows = [row_of(1, 4, slice="plain"), row_of(2, 4)]
    found = evaluated(rows).to_dict()["refined"]
    assert found["pixel_recall"] == 3 / 8
    assert found["slices"]["plain"]["pixel_recall"] == 1 / 4

    first, second = (
        write_benchmark(tmp_path / name, {"alpha": skill}, ["x@1"], pictures=6)
        for name, skill in (("a", 0.4), ("b", 0.9))
    )
    report, files = build_report(first, examples=1)
    value = report.rows[0].scores["pixel_recall"].value
    assert value is not None
    by_suffix = {file.suffix: file.read_text() for file in files}
    heading, line = by_suffix[".csv"].splitlines()
    assert dict(zip(heading.split(","), line.split(","), strict=True))["pixel_recall"] == str(value)
    stored = json.loads(by_suffix[".json"])["cells"][0]["scores"]
    assert list(stored) == list(titles())
    assert stored["pixel_recall"]["value"] == value
    for suffix in (".html", ".md", ".tex"):
        assert "recall of pixels" in by_suffix[suffix]
    assert extra.summary in by_suffix[".html"]

    assert main(["report", "compare", str(first), str(second), "--json"]) == 0
    (pair,) = json.loads(capsys.readouterr().out)["pairs"]
    assert pair["scores"]["pixel_recall"]["first"] == value
    assert main(["report", "compare", str(first), str(second)]) == 0
    assert "recall of pixels" in capsys.readouterr().out


@pytest.mark.parametrize(("protocol", "share"), [("standard", 1.0), ("flmm-paper", 0.0)])
def test_an_iou_on_the_threshold_is_counted_but_in_the_papers_protocol(
    protocol: str, share: float, tmp_path: Path
) -> None:
    """The original compares with `>`; 5 of 10 pixels are an IoU of exactly 0.5."""
    for t in THRESHOLDS:
        pixels = round(10 * t)
        row = row_of(pixels, 10, coarse_intersection=pixels, coarse_union=10)
        found = Evaluation(protocol=protocol)
        found.add([row])
        name = f"precision@{t}"
        assert found[name] == found[f"coarse_{name}"] == share
        assert found[f"target_{name}"] == 1  # as GRES's script
        columns = measured(tmp_path / str(t), [row], protocol=protocol).columns
        assert score_rows(columns)[name].value == share
