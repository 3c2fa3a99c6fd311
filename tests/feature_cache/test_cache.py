"""Building a cache of features, and the heads that are trained on it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from flmm_core import Grounder, UsageError
from flmm_core.data.images import read_image
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_sources
from flmm_core.evaluation.baselines import channel_shares, labeled_maps
from flmm_core.evaluation.evaluate import evaluate_run
from flmm_core.feature_cache.read import StoredBatch
from flmm_core.feature_cache.store import Store, clear
from flmm_core.loader.dataset import ObservedFeatures
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.build import build_from_config
from flmm_core.pipeline.observer import ObserverInputs
from flmm_core.progress import Progress
from flmm_core.training.setup import open_cached
from tests.cached import Runs, weights


@pytest.fixture
def no_frozen_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, no VLM can be loaded and no image encoder can run."""

    def forbid() -> None:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError("the frozen parts were asked for")

        monkeypatch.setattr(Backbone, "load", fail)
        monkeypatch.setattr("flmm_core.pipeline.refiners.sam.SamEncoder.encode", fail)

    return forbid


# --- the same head -----------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["flmm-paper", "standard"])
def test_a_head_from_the_cache_is_the_one_without_it_bit_for_bit(
    runs: Runs, no_frozen_parts: Callable[[], None], protocol: str
) -> None:
    more = {"train_protocol": protocol, "val_data": [runs.source]}
    without = runs.train("without", exact=True, **more)
    runs.build(**more)
    no_frozen_parts()
    cached = runs.train("cached", cache=runs.cache, **more)
    assert weights(cached) == weights(without)
    lines = [(run / "metrics.jsonl").read_text().splitlines() for run in (without, cached)]
    losses = [[json.loads(line).get("loss") for line in part] for part in lines]
    assert losses[0] == losses[1]
    scores = [
        [json.loads(line)["validation"]["refined"] for line in part if "validation" in line]
        for part in lines
    ]
    assert scores[0] == scores[1] != []


def test_without_exact_the_last_bits_depend_on_companions(runs: Runs) -> None:
    """Why `exact` is there: images of several lengths in a batch are padded."""
    config, spec = runs.config()
    samples = open_sources(config.data, config.train_protocol)
    observer, _ = build_from_config(config, spec)
    inputs = [
        observer.prepare(read_image(sample.image_path), sample.segments) for sample in samples
    ]
    alone = [observer.observe(observer.collate([one]))[0] for one in inputs]
    together = observer.observe(observer.collate(inputs))
    exact = replace(observer, one_by_one=True).observe(observer.collate(inputs))

    def same(one: Any, two: Any) -> bool:
        return bool(
            torch.equal(one.maps.maps, two.maps.maps) and torch.equal(one.hidden, two.hidden)
        )

    assert all(map(same, exact, alone))
    assert not all(map(same, together, alone))
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one.maps.maps, two.maps.maps, atol=1e-5, rtol=1e-3)


def test_fresh_weights_follow_from_the_seed_alone(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A loader that draws random numbers must not reach the head."""
    config, spec = runs.config()

    def fresh() -> dict[str, torch.Tensor]:
        torch.manual_seed(5)
        return build_from_config(config, spec)[1].state_dict()

    before = fresh()
    load = Backbone.load.__func__  # type: ignore[attr-defined]

    def drawing(cls: Any, *args: Any, **kwargs: Any) -> Any:
        torch.rand(7)
        return load(cls, *args, **kwargs)

    monkeypatch.setattr(Backbone, "load", classmethod(drawing))
    after = fresh()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_stopped_run_on_a_cache_goes_on_bit_for_bit(runs: Runs) -> None:
    runs.build()
    whole = runs.train("whole", cache=runs.cache)
    cut = runs.train("cut", cache=runs.cache, steps=4)
    shutil.rmtree(cut / "checkpoints" / "step-4")
    (cut / "last").unlink()
    (cut / "last").symlink_to("checkpoints/step-2")
    first, runs.cache = runs.cache, runs.folder / "other"
    runs.build(maps="uint8")
    with pytest.raises(UsageError, match="maps: cache 'uint8', run 'float32'"):
        runs.train("cut", cache=runs.cache, resume=True)
    resumed = runs.train("cut", cache=first, resume=True)
    assert weights(resumed) == weights(whole)


def test_the_head_is_measured_with_the_frozen_models_afterwards(runs: Runs) -> None:
    runs.build()
    run = runs.train("run", cache=runs.cache, eval_data=[runs.source], pictures=1)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["vlm_sha256"]["before"] == summary["vlm_sha256"]["after"]
    again = evaluate_run(run, [runs.source], protocol="standard")
    assert again["data"][runs.source]["refined"]["ciou"] == summary["refined"]["ciou"]
    facts = json.loads((run / "last" / "config.json").read_text())
    assert facts["cache"] == {"maps": "float32"}
    assert [path.name for path in (run / "pictures").iterdir()] == ["00.png"]


def test_no_vlm_is_loaded_to_train_on_a_cache(
    runs: Runs, no_frozen_parts: Callable[[], None]
) -> None:
    runs.build()
    config, spec = runs.config(cache=runs.cache, output=runs.folder / "run")
    no_frozen_parts()
    setup = open_cached(config, spec, Progress())
    with pytest.raises(AssertionError, match="were asked for"):
        setup.observed()


@pytest.mark.multiprocess
def test_workers_read_the_same_from_a_cache(runs: Runs) -> None:
    runs.build(workers=2)
    one, two = (runs.train(f"run-{n}", cache=runs.cache, workers=n) for n in (0, 2))
    assert weights(one) == weights(two)


def test_a_stored_batch_is_pinned_whole(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.build()
    store, pinned = Store(runs.cache), []
    batch = StoredBatch(tuple(store.features(key) for key in list(store.samples)[:2]))
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(self) or self)
    same = batch.pin_memory()
    assert len(pinned) == 2 * 3  # maps, hidden rows, embedding
    assert torch.equal(same.features[1].maps.maps, batch.features[1].maps.maps)


# --- smaller caches ----------------------------------------------------------------------------


def test_channels_are_chosen_on_the_training_data_and_stay_with_the_head(
    runs: Runs, drawn: Path
) -> None:
    runs.build(channels=5)
    manifest = Store(runs.cache).manifest
    assert len(manifest.channels) == 5
    assert list(manifest.channels) == sorted(set(manifest.channels))
    shares = manifest.measure["shares"]
    assert min(shares) > manifest.measure["mean_share_of_all"]
    run = runs.train("run", cache=runs.cache)
    shutil.rmtree(runs.cache)
    head = load_file(run / "last" / "model.safetensors")
    assert head["mask_head.unet.encoder.0.0.convs.0.conv.weight"].shape[1] == 5
    grounder = Grounder.from_pretrained(run)
    assert grounder.info.recipe.channels == manifest.channels
    assert grounder.info.model == manifest.identity == grounder.backbone.identity()
    picture = read_image(next(drawn.rglob("*.png")))
    result = grounder.ground(picture, ["red ring"])
    assert result.logits.shape == (1, picture.height, picture.width)
    runs.build(channels=5)
    assert Store(runs.cache).manifest.channels == manifest.channels


class LastTokens(ObservedFeatures):
    """Each phrase is its last token alone."""

    def prepare(self, sample: Sample) -> ObserverInputs:
        inputs = super().prepare(sample)
        rows = tuple(rows[-1:] for rows in inputs.backbone.phrase_rows)
        return replace(inputs, backbone=replace(inputs.backbone, phrase_rows=rows))


def test_for_learned_pooling_channels_also_count_by_what_the_last_token_sees(runs: Runs) -> None:
    config, spec = runs.config(absent_share=0.0)
    samples = open_sources(config.data, config.train_protocol, split_captions=True)
    observer, _ = build_from_config(config, spec)
    mean, last = (
        channel_shares(list(labeled_maps(kind(observer), samples)))
        for kind in (ObservedFeatures, LastTokens)
    )
    expected = torch.maximum(mean, last).topk(3).indices.sort().values
    assert expected.tolist() != mean.topk(3).indices.sort().values.tolist()
    runs.build(channels=3, head__pool="learned", absent_share=0.0)
    manifest = Store(runs.cache).manifest
    assert list(manifest.channels) == expected.tolist()
    shares = torch.maximum(mean, last)[expected].tolist()
    assert manifest.measure["shares"] == pytest.approx(shares, abs=1e-6)


def test_more_channels_than_there_are_is_all_of_them(runs: Runs) -> None:
    runs.build(channels=10_000)
    assert runs.build(channels=10_000).samples == 0
    made = Store(runs.cache).manifest
    assert len(made.channels) == made.vlm.attention_channels


@pytest.mark.parametrize(("maps", "share"), [("float16", 0.75), ("uint8", 0.45)])
def test_small_maps_take_less_room_and_train(runs: Runs, maps: str, share: float) -> None:
    whole = runs.build(refiner="none")
    clear(runs.cache)
    small = runs.build(maps=maps, refiner="none")
    assert small.maps < share * whole.maps
    runs.train("run", cache=runs.cache, refiner="none")
    assert weights(runs.folder / "run")


def test_exact_training_refuses_a_cache_that_lost_something(runs: Runs) -> None:
    runs.build(maps="uint8")
    with pytest.raises(UsageError, match="not exact") as error:
        runs.train("run", cache=runs.cache, exact=True)
    assert "uint8" in str(error.value)
