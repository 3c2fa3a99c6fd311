"""What is scored of each kind of data, against masks decoded and counted here."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from flmm_core.data import rle
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS, writable_formats
from flmm_core.data.images import read_image
from flmm_core.data.protocols import ImageSamples
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError
from flmm_core.evaluation.baselines import MaskMethod
from flmm_core.evaluation.evaluate import evaluate
from flmm_core.evaluation.phrase_rows import PhraseRow
from flmm_core.evaluation.running_scores import Evaluation
from tests.flows import KnowingFeatures, KnowingMasks, knowing_method

SCENES = 6


def samples_of(folder: Path, form: str) -> ImageSamples:
    written = FORMATS[form]
    pictures = draw_images(SCENES, seed=4, kinds=("plain", "relation"), split="val",
                             extras=written.extras)  # fmt: skip
    written.write(folder, pictures)
    return open_source(f"{form}:{folder}@val")


def scored(samples: ImageSamples, share: float = 0.5) -> tuple[Evaluation, list[PhraseRow]]:
    rows: list[PhraseRow] = []
    result = evaluate(
        knowing_method(samples, share),
        samples,
        batch_size=4,
        watch=lambda _, new: rows.extend(new),
    )
    return result, rows


@pytest.mark.parametrize("form", writable_formats())
def test_rows_count_the_pixels_of_their_masks(tmp_path: Path, form: str) -> None:
    samples = samples_of(tmp_path, form)
    result, rows = scored(samples)
    phrases = [phrase for sample in samples for phrase in sample.phrases]
    assert len(rows) == len(phrases) == result.phrases
    assert len({row.item for row in rows}) == len(rows)
    for row, phrase in zip(rows, phrases, strict=True):
        found = rle.decode({"size": list(row.size), "counts": row.segmentation.counts.encode()})
        truth = rle.decode(phrase.mask)
        counted = np.ones_like(truth)
        if phrase.ignore is not None:
            counted = ~rle.decode(phrase.ignore)
        assert row.ignored == (~counted).sum()
        assert row.intersection == (found & truth & counted).sum()
        assert row.union == ((found | truth) & counted).sum()
        assert (row.predicted, row.truth) == ((found & counted).sum(), (truth & counted).sum())
        assert (row.box_iou is None) == (row.point_in_mask is None) == (not row.truth)
        assert (samples.folder / row.picture).is_file()
        assert row.truth_segmentation is not None
        assert row.truth_segmentation.counts.encode() == phrase.mask["counts"]
        assert row.phrase == phrase.text
    assert result.whole.numerators["ciou"] == sum(row.intersection for row in rows)
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()


@pytest.mark.parametrize(
    ("form", "kinds"),
    [
        ("refcoco", set()),
        ("grefcoco", {"generalised"}),
        ("reasonseg", {"reasoning"}),
        ("png", {"recall", "tags"}),
        ("labelme", set()),
    ],
)
def test_scores_are_shown_where_the_data_has_a_use_for_them(
    tmp_path: Path, form: str, kinds: set[str]
) -> None:
    found = scored(samples_of(tmp_path, form))[0].to_dict()
    assert found.keys() & {"generalised", "reasoning", "recall", "tags", "calibration"} == kinds
    assert {"coarse", "refined", "box", "point", "samples", "skipped", "seconds"} <= found.keys()


def test_perfect_answers_are_perfect_by_every_score(tmp_path: Path) -> None:
    gref = scored(samples_of(tmp_path / "g", "grefcoco"), 1)[0].to_dict()
    assert {gref["generalised"][name] for name in ("giou", "ciou", "n_acc", "t_acc")} == {1}
    assert gref["box"]["accuracy"] == gref["point"]["accuracy"] == 1
    reason = scored(samples_of(tmp_path / "r", "reasonseg"), 1)[0].to_dict()
    assert (reason["reasoning"]["giou"], reason["reasoning"]["ciou"]) == (1, 1)
    png = scored(samples_of(tmp_path / "p", "png"), 1)[0].to_dict()["recall"]
    assert list(png["average_recall"].values()) == pytest.approx([0.99999] * 5)
    assert min(png["masks"].values()) > 0
    assert png["masks"]["thing"] + png["masks"]["stuff"] == png["masks"]["all"]


def test_rivals_are_the_other_masks_of_a_category(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, "refcoco")
    for picture in samples.images:
        for thing in picture.objects:
            rivals = {
                other.read_mask()["counts"]
                for other in picture.objects
                if other.category == thing.category
            } - {thing.read_mask()["counts"]}
            found = [
                phrase.distractors
                for sample in samples
                for phrase in sample.phrases
                if phrase.mask == thing.mask
            ]
            assert found
            assert set(found) == {len(rivals)}


def test_batches_and_limits_change_no_row(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, "refcoco")
    rows = scored(samples)[1]
    few: list[PhraseRow] = []
    result = evaluate(
        knowing_method(samples, 0.5),
        samples,
        batch_size=1,
        limit=5,
        watch=lambda _, new: few.extend(new),
    )
    assert result.samples == 5
    plain = {"seconds": 0.0}
    assert [row.model_copy(update=plain) for row in few] == [
        row.model_copy(update=plain) for row in rows[:5]
    ]


class ReadingFeatures(KnowingFeatures):
    """Reads the image of each sample, as the features of a VLM do."""

    def prepare(self, sample: Sample) -> int:
        read_image(sample.image_path, image_hw=sample.image_hw)
        return super().prepare(sample)


def test_a_broken_image_stops_an_evaluation(tmp_path: Path) -> None:
    samples = samples_of(tmp_path, "refcoco")
    method = MaskMethod("head", ReadingFeatures(samples), KnowingMasks(samples))
    assert evaluate(method, samples)["ciou"] == 1
    samples[3].image_path.write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=samples[3].image_path.name):
        evaluate(method, samples)


def test_nothing_scored_is_null() -> None:
    found = Evaluation().to_dict()
    assert found["refined"]["ciou"] is None
    assert not any(isinstance(value, float) and math.isnan(value) for value in found.values())
