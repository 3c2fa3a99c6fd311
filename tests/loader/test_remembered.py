"""Features that a run keeps in memory: the same head, and each sample is observed once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from flmm_core.data.sources import open_sources
from flmm_core.loader.dataset import ExampleDataset, ObservedFeatures
from flmm_core.loader.remembered import RememberedFeatures, SeenBatch, size_of
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.build import build_from_config
from flmm_core.pipeline.types import BackboneBatch
from tests.cached import Runs, weights


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    """Four steps of three samples, of which there are fewer than twelve."""
    runs = Runs(random_twin, drawn, tmp_path)
    runs.settings["cache_memory"] = 1.0
    return runs


@pytest.fixture
def observed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the samples that pass the VLM, in order, without that of the check at load."""
    names: list[str] = []
    trace = Backbone.trace

    def counted(self: Backbone, batch: BackboneBatch, **more: object) -> object:
        names.extend(one.name for one in batch.samples if one.name != "drawn image")
        return trace(self, batch, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Backbone, "trace", counted)
    return names


def source_of(runs: Runs, limit: int) -> tuple[RememberedFeatures, ExampleDataset]:
    config, spec = runs.config()
    observer, _ = build_from_config(config, spec)
    source = RememberedFeatures(ObservedFeatures(observer), limit)
    return source, ExampleDataset(open_sources(config.data, "standard"), source)


def test_the_head_is_that_of_an_exact_run_and_each_sample_is_observed_once(
    runs: Runs, observed: list[str]
) -> None:
    exact = runs.train("exact", exact=True, cache_memory=0)
    every_time = list(observed)
    observed.clear()
    kept = runs.train("kept")
    assert weights(kept) == weights(exact)
    assert len(set(every_time)) < len(every_time) == 12
    assert sorted(observed) == sorted(set(every_time))


def test_a_stopped_run_that_remembers_nothing_goes_on_bit_for_bit(runs: Runs) -> None:
    whole = runs.train("whole")
    cut = runs.train("cut")
    shutil.rmtree(cut / "checkpoints" / "step-4")
    (cut / "summary.json").unlink()
    (cut / "last").unlink()
    (cut / "last").symlink_to("checkpoints/step-2")
    resumed = runs.train("cut", resume=True, cache_memory=0.5)
    assert weights(resumed) == weights(whole)


def test_no_more_is_kept_than_the_limit(runs: Runs, observed: list[str]) -> None:
    unbounded, dataset = source_of(runs, 10**9)
    examples = [dataset.example(index) for index in range(len(dataset))]
    first = unbounded.features(unbounded.collate([one.inputs for one in examples]))
    assert unbounded.bytes == sum(map(size_of, first))
    bounded, dataset = source_of(runs, unbounded.bytes - 1)
    for _ in range(2):
        observed.clear()
        examples = [dataset.example(index) for index in range(len(dataset))]
        again = bounded.features(bounded.collate([one.inputs for one in examples]))
        for one, two in zip(first, again, strict=True):
            assert torch.equal(one.maps.maps, two.maps.maps)
            assert torch.equal(one.hidden, two.hidden)
            assert one.image is not None
            assert two.image is not None
            assert torch.equal(one.image.embedding, two.image.embedding)
    assert bounded.count == len(dataset) - 1 == len(dataset) - len(observed)
    assert bounded.bytes <= bounded.limit
    kept = bounded.features(bounded.collate([dataset.example(0).inputs]))[0]
    assert kept.maps.maps.untyped_storage().nbytes() == kept.maps.maps.nbytes
    assert kept.hidden.untyped_storage().nbytes() == kept.hidden.nbytes


@pytest.mark.multiprocess
def test_workers_know_nothing_and_give_the_same_head(runs: Runs) -> None:
    alone, helped = (runs.train(f"run-{n}", workers=n, steps=3, save_every=3) for n in (0, 1))
    assert weights(alone) == weights(helped)


def test_only_what_is_not_known_is_pinned(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    source, dataset = source_of(runs, 10**9)
    source.features(source.collate([dataset.example(0).inputs]))
    batch = source.collate([dataset.example(index).inputs for index in (0, 1)])
    pinned: list[torch.Tensor] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    same = batch.pin_memory()
    assert isinstance(same, SeenBatch)
    assert [each is None for each in same.inputs] == [True, False]
    assert pinned
