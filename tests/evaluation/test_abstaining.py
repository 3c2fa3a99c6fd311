"""`--abstain`: a measured head says "not there" as it does in `flmm ground`."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
import torch

from flmm_core.benchmark import BenchmarkRun, Plan
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.images import read_image
from flmm_core.data.sources import open_source
from flmm_core.errors import UsageError
from flmm_core.evaluation.benchmark_folder import read_measurement
from flmm_core.evaluation.evaluate import evaluate, evaluate_run
from flmm_core.evaluation.phrase_rows import PhraseRow, read_rows
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.confidence import Confidence, NotThere, Platt
from flmm_core.pipeline.grounder import Grounder
from flmm_core.report.measurements import load_measurement
from tests.flows import fresh_grounder, method_of


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Scenes in which some phrases name nothing."""
    folder = tmp_path_factory.mktemp("absent")
    FORMATS["grefcoco"].write(folder, draw_images(4, seed=8, extras=("absent",)))
    return f"grefcoco:{folder}@train"


@pytest.fixture(scope="module")
def untrained(random_twin: Path) -> Grounder:
    recipe = Recipe("qwen", str(random_twin), base_channels=4, enlarge_to=16, refiner="none")
    grounder = fresh_grounder(recipe)
    with torch.no_grad():
        grounder.head.mask_head.unet.conv_seg.bias += 1  # so that no mask is empty by itself
    return grounder


@pytest.fixture(scope="module")
def head(untrained: Grounder, source: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head whose threshold withholds about half of its masks."""
    rows: list[PhraseRow] = []
    evaluate(method_of(untrained), open_source(source), watch=lambda _, new: rows.extend(new))
    calibrator = Platt(slope=4.0, offset=-1.0)
    middle = float(calibrator(statistics.median(row.score for row in rows)))
    confidence = Confidence(
        masks=len(rows),
        calibrator=calibrator,
        not_there=NotThere(
            threshold=middle, quantity="balanced", value=0.9, without=0.5, samples=len(rows)
        ),
    )
    folder = tmp_path_factory.mktemp("head")
    sure = Grounder(untrained.observer, untrained.head, untrained.info, confidence)
    return sure.save_pretrained(folder, steps=0, protocol="standard")


def test_eval_and_benchmark_abstain_as_ground_does(head: Path, source: str, tmp_path: Path) -> None:
    plan = Plan(heads=(str(head),), data=(source,), abstain=True)
    BenchmarkRun(plan, tmp_path).run()
    (cell,) = (tmp_path / "cells").iterdir()
    rows = list(read_rows(cell / "items.jsonl"))
    assert 0.3 < sum(row.there for row in rows) / len(rows) < 0.7
    assert all(row.there or row.predicted == row.intersection == 0 for row in rows)
    facts = read_measurement(cell).model_extra or {}
    found = evaluate_run(head, [source], abstain=True)
    scores = found["data"][source]["generalised"]
    assert scores == facts["scores"]["generalised"]
    answered = [row.predicted > 0 for row in rows if row.truth]
    withheld = [row.predicted == 0 for row in rows if not row.truth]
    assert scores["t_acc"] == pytest.approx(sum(answered) / len(answered))
    assert scores["n_acc"] == pytest.approx(sum(withheld) / len(withheld))
    always = evaluate_run(head, [source])
    assert always["abstain_below"] is None
    assert always["data"][source]["generalised"]["t_acc"] > scores["t_acc"]
    assert always["data"][source]["generalised"]["n_acc"] < scores["n_acc"]

    grounder = Grounder.from_pretrained(head)
    assert grounder.confidence is not None
    threshold = grounder.confidence.threshold
    assert threshold is not None
    assert facts["abstain_below"] == found["abstain_below"] == threshold
    for sample, row in list(zip(open_source(source), rows, strict=True))[:6]:
        result = grounder.ground(read_image(sample.image_path), [row.phrase])
        assert bool(result.there[0]) == row.there
        assert (int(result.masks.sum()) == 0) == (row.predicted == 0)


def test_a_report_judges_only_probabilities_of_given_masks(
    head: Path, source: str, tmp_path: Path
) -> None:
    BenchmarkRun(Plan(heads=(str(head),), data=(source,), abstain=True), tmp_path).run()
    (cell,) = (tmp_path / "cells").iterdir()
    there = [row.there for row in read_rows(cell / "items.jsonl")]
    known = load_measurement(cell).columns.probability >= 0
    assert known.tolist() == there


def test_a_benchmark_goes_on_only_as_it_was_begun(head: Path, source: str, tmp_path: Path) -> None:
    plan = Plan(heads=(str(head),), data=(source,), limit=2)
    BenchmarkRun(plan, tmp_path).run()
    with pytest.raises(UsageError) as error:
        BenchmarkRun(plan.model_copy(update={"abstain": True}), tmp_path).run()
    assert str(error.value) == (
        f"The folder '{tmp_path}' holds another benchmark.\n"
        "abstain: False there, True here.\n"
        "Give another --output, or the command that started this benchmark."
    )


def test_a_folder_from_before_there_was_abstaining_goes_on(
    head: Path, source: str, tmp_path: Path
) -> None:
    plan = Plan(heads=(str(head),), data=(source,), limit=2)
    BenchmarkRun(plan, tmp_path).run()
    path = tmp_path / "benchmark.json"
    old = path.read_text().replace('"abstain": false,', "")
    assert old != path.read_text()
    path.write_text(old)
    assert BenchmarkRun(plan, tmp_path).run() is not None


def test_a_head_without_threshold_cannot_abstain(head: Path, source: str, tmp_path: Path) -> None:
    grounder = Grounder.from_pretrained(head)
    assert grounder.confidence is not None
    repair = "Train it with --val-data that has phrases without target (docs/metrics.md)."
    for confidence, found in (
        (grounder.confidence.model_copy(update={"not_there": None}),
         "Its validation data had no phrases without target."),
        (None, "It was trained without validation data."),
    ):  # fmt: skip
        other = Grounder(grounder.observer, grounder.head, grounder.info, confidence)
        bare = other.save_pretrained(tmp_path / "bare")
        said = f"The head '{bare}' has no threshold for \"not there\".\n{found}\n{repair}"
        with pytest.raises(UsageError) as error:
            evaluate_run(bare, [source], abstain=True)
        assert str(error.value) == said
        with pytest.raises(UsageError) as error:
            BenchmarkRun(
                Plan(heads=(str(bare),), data=(source,), abstain=True), tmp_path / "out"
            ).run()
        assert str(error.value) == said


def test_methods_without_training_cannot_abstain(head: Path, source: str, tmp_path: Path) -> None:
    plan = Plan(heads=(str(head),), data=(source,), methods=("head", "box+sam"), abstain=True)
    with pytest.raises(UsageError) as error:
        BenchmarkRun(plan, tmp_path).run()
    assert str(error.value) == (
        "The method 'box+sam' cannot answer \"not there\".\n"
        "Only a head's masks have probabilities.\n"
        "Omit --abstain, or evaluate this method separately."
    )
    with pytest.raises(UsageError, match="The method 'box\\+sam' cannot answer"):
        evaluate_run(head, [source], method="box+sam", abstain=True)
