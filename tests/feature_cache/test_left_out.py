"""One rule for samples that cannot be used: in training, evaluation and the cache."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flmm_core.config import SkipLimit
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.left_out import LeftOut
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError
from flmm_core.evaluation.evaluate import evaluate_run
from flmm_core.feature_cache.store import Store
from flmm_core.training.train import train
from tests.cached import Runs, weights
from tests.stopping import StopAt


def images_of(runs: Runs) -> list[Path]:
    return sorted({sample.image_path for sample in open_source(runs.source)})


@pytest.fixture
def damaged(random_twin: Path, tmp_path: Path) -> Runs:
    """Runs on five images, one of which is cut off."""
    drawn = FORMATS["refcoco"].write(tmp_path / "drawn", draw_images(5, 3))
    runs = Runs(random_twin, drawn, tmp_path)
    broken = images_of(runs)[2]
    broken.write_bytes(broken.read_bytes()[:300])
    return runs


def names(listed: list[dict[str, str]]) -> list[str]:
    return [one["item"] for one in listed]


def summary(run: Path) -> Any:
    return json.loads((run / "summary.json").read_text())


def test_more_than_the_limit_is_an_error(damaged: Runs) -> None:
    with pytest.raises(DataError) as error:
        damaged.train("run")
    first, found, _ = str(error.value).splitlines()
    assert first == (f"More of '{damaged.source}' cannot be used than --max-skipped 1% allows.")
    assert found.startswith("Left out: 1 of 5 samples. The last is refcoco@train/")
    assert " is broken or cut off" in found
    with pytest.raises(DataError, match="--max-skipped 0 allows"):
        damaged.build(max_skipped=0)


def test_a_run_goes_on_without_the_sample_and_resumes_alike(damaged: Runs) -> None:
    given = {"max_skipped": "25%", "steps": 6, "eval_data": [damaged.source]}
    whole = damaged.train("whole", **given)
    (name,) = names(summary(whole)["left_out"])
    assert name.startswith("refcoco@train/")
    (scores,) = summary(whole)["evaluations"].values()
    lost = set(names(scores["left_out"]))
    assert len(lost) == scores["skipped"] == len(open_source(damaged.source)) - scores["samples"]
    assert all(one.startswith(name) for one in lost)
    with pytest.raises(DataError, match="--max-skipped 1% allows"):
        evaluate_run(whole, [damaged.source])
    (found,) = evaluate_run(whole, [damaged.source], max_skipped="25%")["data"].values()
    assert set(names(found["left_out"])) == lost
    stopped = damaged.folder / "stopped"
    with pytest.raises(KeyboardInterrupt):
        train(*damaged.config(output=stopped, **given), StopAt("Training", 3))
    resumed = damaged.train("stopped", **given, resume=True)
    assert weights(resumed) == weights(whole)
    assert summary(resumed)["left_out"] == summary(whole)["left_out"]


def test_a_cache_leaves_the_same_out(damaged: Runs) -> None:
    damaged.build(max_skipped=1)
    loads = damaged.loads
    assert damaged.build(max_skipped=1).samples == 0  # not tried again
    assert damaged.loads == loads
    assert len(Store(damaged.cache).left_out) == 1
    without = damaged.train("without", exact=True, max_skipped=1)
    cached = damaged.train("cached", cache=damaged.cache, max_skipped=1)
    assert weights(cached) == weights(without)
    assert names(summary(cached)["left_out"]) == names(summary(without)["left_out"])


def test_a_set_of_which_nothing_can_be_used(damaged: Runs) -> None:
    for image in images_of(damaged):
        image.write_bytes(b"no image")
    with pytest.raises(DataError, match="No sample of "):
        damaged.train("run", max_skipped="100%")


@pytest.mark.parametrize(
    ("limit", "objects", "allowed"),
    [("0", 200, 0), ("2", 200, 2), ("1%", 200, 2), ("1%", 99, 0), ("100%", 3, 2), ("0.5%", 400, 2)],
)
def test_a_limit_is_a_number_or_a_share(limit: str, objects: int, allowed: int) -> None:
    samples: Any = [None] * objects
    left_out = LeftOut(samples, SkipLimit.given(limit))
    for index in range(allowed):
        left_out.add(index, "broken")
        left_out.add(index, "broken")  # once more, in the next epoch
    with pytest.raises(DataError):
        left_out.add(allowed, "broken")


@pytest.mark.parametrize("text", ["", "-1", "a few", "1.5", "101%", "1%%", "9" * 400, "nan%", "²%"])
def test_what_is_no_limit(text: str) -> None:
    with pytest.raises(ValueError, match="must be "):
        SkipLimit.parse(text)
