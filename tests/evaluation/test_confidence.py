"""Probabilities of masks: fitted on validation data, kept with the head, said with the masks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from flmm_core.data import rle
from flmm_core.data.sample import Phrase, Sample
from flmm_core.errors import DataError, WeightsError
from flmm_core.evaluation.calibration import Judgements, fit_confidence
from flmm_core.evaluation.reliability import Reliability
from flmm_core.evaluation.rows_from_masks import rows_from_masks
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.loader.dataset import ExampleBatch
from flmm_core.pipeline.confidence import FILE, read_confidence, write_confidence
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Grounding
from flmm_core.segment import Segment


def judged(count: int, absent: float = 0.0, seed: int = 0) -> Judgements:
    """Masks that are right as often as their evidence says, and never where a thing is absent."""
    rng = np.random.default_rng(seed)
    evidence = rng.random(count)
    missing = rng.random(count) < absent
    evidence[missing] *= 0.3
    right = (rng.random(count) < evidence) & ~missing
    return Judgements(
        evidence.tolist(),
        right.tolist(),
        missing.tolist(),
    )


def grounding(logits: Tensor, coarse: Tensor | None = None) -> Grounding:
    maps = AttentionMaps(torch.zeros(len(logits), 1, 2, 2), WHOLE_IMAGE)
    coarse = logits[:, ::2, ::2] if coarse is None else coarse
    return Grounding(coarse, MaskLogits(logits), maps)


def half(level: float = 4.0, rows: slice = slice(0, 4)) -> Tensor:
    logits = torch.full((1, 8, 8), -level)
    logits[:, rows] = level
    return logits


def test_evidence_falls_with_doubt_and_with_disagreement() -> None:
    sure = grounding(half()).evidence
    assert sure.shape == (1,)
    assert 0.85 < sure.item() <= 1
    assert grounding(half(0.3)).evidence < sure
    assert grounding(half(), half(rows=slice(2, 6))).evidence < 0.6 * sure
    assert grounding(half(), half(rows=slice(4, 8))).evidence.item() < 0.2
    assert grounding(torch.full((1, 8, 8), -4.0)).evidence.item() == 0
    assert grounding(torch.zeros(0, 8, 8)).evidence.shape == (0,)


def test_masks_are_judged_as_they_are_scored() -> None:
    truths = half()[0] > 0, torch.zeros(8, 8, dtype=torch.bool)
    logits = torch.cat([half(rows=slice(0, 3)), half()])
    corner = np.zeros((8, 8), dtype=bool)
    corner[:2, :4] = True
    ignore = None, rle.encode(corner)
    phrases = tuple(
        Phrase("the ring", rle.encode(truth.numpy()), ignore=mask)
        for truth, mask in zip(truths, ignore, strict=True)
    )
    words = Segment("the ring", 0), Segment("the ring", 1)
    sample = Sample("x", Path("x.png"), (8, 8), words, phrases)
    batch = cast(ExampleBatch, SimpleNamespace(truths=(torch.stack(truths),), samples=(sample,)))
    made, found = grounding(logits), Judgements()
    (rows,) = rows_from_masks([made], batch)
    found.add(made, rows)
    assert found.right == [True, False]
    assert found.absent == [False, True]
    assert found.evidence == grounding(logits).evidence.tolist()


@pytest.mark.parametrize(("count", "kind"), [(300, "platt"), (2000, "isotonic")])
def test_a_fit_is_calibrated_on_masks_that_it_has_not_seen(count: int, kind: str) -> None:
    confidence = fit_confidence(judged(count))
    assert confidence.calibrator.kind == kind
    assert confidence.masks == count
    unseen, scores = judged(4000, seed=1), Reliability()
    for probability, right in zip(confidence(unseen.evidence), unseen.right, strict=True):
        scores.add(float(probability), right)
    assert scores.error < 0.05
    steps = confidence(np.linspace(0, 1, 101))
    assert (np.diff(steps) >= 0).all()


def test_a_threshold_is_chosen_only_where_things_are_absent() -> None:
    assert fit_confidence(judged(200)).threshold is None
    confidence = fit_confidence(judged(600, absent=0.3))
    assert confidence.threshold is not None
    unseen = judged(2000, absent=0.3, seed=4)
    below = confidence(unseen.evidence) < confidence.threshold
    absent = np.array(unseen.absent)
    assert below[absent].mean() > 0.9
    assert below[~absent].mean() < 0.4


def test_without_masks_there_is_nothing_to_fit() -> None:
    with pytest.raises(DataError, match="Cannot fit a calibrator on 0 masks"):
        fit_confidence(Judgements())


@pytest.mark.parametrize("count", [40, 1500])
@pytest.mark.parametrize("absent", [0.0, 0.4])
def test_it_survives_its_file(count: int, absent: float, tmp_path: Path) -> None:
    confidence = fit_confidence(judged(count, absent))
    write_confidence(tmp_path, confidence)
    assert [path.name for path in tmp_path.iterdir()] == [FILE]
    read = read_confidence(tmp_path)
    assert read == confidence
    assert read is not None
    evidence = np.linspace(0, 1, 50)
    assert np.array_equal(read(evidence), confidence(evidence))


def test_no_file_is_no_confidence_and_a_broken_one_is_named(tmp_path: Path) -> None:
    assert read_confidence(tmp_path) is None
    whole: dict[str, Any] = fit_confidence(judged(60, 0.4)).model_dump()
    path = tmp_path / FILE
    unknown_kind = (
        "calibrator: Input tag 'plat' found using 'kind' does not match any of the expected "
        "tags: 'isotonic', 'platt'."
    )
    for broken, reason in (
        ({**whole, "format": 9}, "format: Input should be 1."),
        ({"format": 1}, "masks: Field required."),
        (
            {**whole, "calibrator": {"kind": "plat"}},
            unknown_kind,
        ),
    ):
        path.write_text(json.dumps(broken))
        with pytest.raises(WeightsError) as error:
            read_confidence(tmp_path)
        assert str(error.value) == (
            f"'{path}' is not a valid confidence file.\n{reason}\n"
            "Copy it again; without this file the head gives no probabilities."
        )
    path.write_text(json.dumps(whole)[:50])
    with pytest.raises(WeightsError, match="EOF while parsing"):
        read_confidence(tmp_path)
    threshold = {**whole["not_there"], "threshold": 7.0}
    path.write_text(json.dumps({**whole, "not_there": threshold}))
    with pytest.raises(WeightsError, match=r"not_there\.threshold: Input should be less than 2"):
        read_confidence(tmp_path)


def test_an_evaluation_reports_the_calibration_error() -> None:
    truth = half()[0] > 0
    phrase = Phrase("the ring", rle.encode(truth.numpy()))
    size = (int(truth.shape[0]), int(truth.shape[1]))
    words = (Segment("the ring", 0), Segment("the ring", 1))
    sample = Sample("x", Path("x.png"), size, words, (phrase, phrase))
    batch = SimpleNamespace(truths=(truth[None].repeat(2, 1, 1),), samples=(sample,))
    made = [grounding(torch.cat([half(), half(rows=slice(4, 8))]))]  # one right, one wrong
    result = Evaluation()
    (rows,) = rows_from_masks(
        made, cast(ExampleBatch, batch), calibrate=lambda evidence: np.full(len(evidence), 0.75)
    )
    result.add(rows)
    calibration = result.to_dict()["calibration"]
    assert (calibration["masks"], calibration["ece"]) == (2, pytest.approx(0.25))
    without = Evaluation()
    without.add(*rows_from_masks(made, cast(ExampleBatch, batch)))
    assert "calibration" not in without.to_dict()


def test_not_there_empties_the_mask_that_is_scored() -> None:
    truths = torch.stack([half()[0] > 0, half()[0] > 0, torch.zeros(8, 8, dtype=torch.bool)])
    phrases = tuple(Phrase(f"ring {i}", rle.encode(t.numpy())) for i, t in enumerate(truths))
    words = tuple(Segment(phrase.text, place) for place, phrase in enumerate(phrases))
    sample = Sample("x", Path("x.png"), (8, 8), words, phrases)
    batch = cast(ExampleBatch, SimpleNamespace(truths=(truths,), samples=(sample,)))
    made = [grounding(half().repeat(3, 1, 1))]

    def likely(evidence: Any) -> Any:
        return np.array([0.7, 0.5, 0.4999])  # the last two stand at the threshold and below it

    (plain,) = rows_from_masks(made, batch, calibrate=likely)
    (held_back,) = rows_from_masks(made, batch, calibrate=likely, abstain_below=0.5)
    assert plain[:2] == held_back[:2]
    kept = {"intersection": 0, "union": 0, "predicted": 0, "there": False,
            "segmentation": held_back[2].segmentation}  # fmt: skip
    assert held_back[2] == plain[2].model_copy(update=kept)
    assert not rle.decode(
        {"size": [8, 8], "counts": held_back[2].segmentation.counts.encode()}
    ).any()
    (all_held_back,) = rows_from_masks(made, batch, calibrate=likely, abstain_below=2)
    assert (all_held_back[0].intersection, all_held_back[0].union) == (0, 32)
    assert (all_held_back[0].box_iou, all_held_back[0].point_in_mask) == (0, False)
    assert all_held_back[0].coarse_intersection == plain[0].coarse_intersection
    scores = [Evaluation(), Evaluation(), Evaluation()]
    for score, rows in zip(scores, (plain, held_back, all_held_back), strict=True):
        score.add(rows)
    found = [score.to_dict()["generalised"] for score in scores]
    assert [(one["n_acc"], one["t_acc"]) for one in found] == [(0, 1), (1, 1), (1, 0)]
    # A probability is told of the masks that are given: of those withheld nobody can say.
    assert [sum(score.reliability.counts) for score in scores] == [3, 2, 0]
    with pytest.raises(ValueError, match="no probability to abstain by"):
        rows_from_masks(made, batch, abstain_below=0.5)
