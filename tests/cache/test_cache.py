"""Building a cache of features, training on it, and everything that can be wrong with one."""

from __future__ import annotations

import errno
import json
import shutil
import signal
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from flmm_core import Grounder, UsageError, WeightsError
from flmm_core.cache import build as building
from flmm_core.cache.build import BuildRequest, Forecast, build_cache
from flmm_core.cache.flow import CachedGrounder, StoredBatch
from flmm_core.cache.store import MANIFEST, Store, clear, shards, size_on_disk
from flmm_core.config import load_config
from flmm_core.data.pictures import read_picture
from flmm_core.data.sources import open_sources
from flmm_core.errors import DataError, RunError
from flmm_core.evaluate import evaluate_run
from flmm_core.pipeline.backbone import Backbone
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress
from flmm_core.train import build_from_config, facts_of, train

DiskUsage = namedtuple("DiskUsage", "total used free")


class Runs:
    """Caches and runs of one folder, behind a toy model."""

    def __init__(self, twin: Path, drawn: Path, folder: Path) -> None:
        self.folder, self.cache, self.loads = folder, folder / "cache", 0
        self.source = f"refcoco:{drawn}@train"
        self.settings: dict[str, Any] = {
            "backbone": "qwen",
            "model": str(twin),
            "data": [self.source],
            "eval_data": [],
            "val_data": [],
            "steps": 4,
            "batch_size": 3,
            "save_every": 2,
            "log_every": 1,
            "learning_rate": 1e-2,
            "head.base_channels": 4,
            "head.enlarge_to": 16,
        }

    def config(self, **more: Any) -> Any:
        given = {key.replace("__", "."): value for key, value in more.items()}
        return load_config(None, self.settings | given, load_backbones().get)

    def build(self, *, maps: Any = "float32", channels: int | None = None, **more: Any) -> Forecast:
        keep = {key: more.pop(key) for key in ("progress", "forecast_only") if key in more}
        config, spec = self.config(**more)

        def load() -> Any:
            self.loads += 1
            return build_from_config(config, spec)

        return build_cache(
            BuildRequest(
                folder=self.cache,
                key=facts_of(config, spec),
                maps=maps,
                channels=channels,
                hidden=config.refiner != "none" and config.sam.text,
            ),
            load,
            open_sources(config.data, config.train_protocol),
            open_sources(config.val_data, config.protocol) if config.val_data else (),
            **keep,
        )

    def train(self, name: str, **more: Any) -> Path:
        return train(*self.config(output=self.folder / name, **more))


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    return Runs(random_twin, drawn, tmp_path)


@pytest.fixture
def no_frozen_parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From the call on, no VLM can be loaded and no image encoder can run."""

    def forbid() -> None:
        def fail(*_: object, **__: object) -> None:
            raise AssertionError("the frozen parts were asked for")

        monkeypatch.setattr(Backbone, "load", fail)
        monkeypatch.setattr("flmm_core.pipeline.refiner.SamRefiner.encode", fail)

    return forbid


def weights(run: Path) -> bytes:
    return (run / "last" / "model.safetensors").read_bytes()


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
    """Why `exact` is there: pictures of several lengths in a batch are padded."""
    config, spec = runs.config()
    samples = open_sources(config.data, config.train_protocol)
    grounder = build_from_config(config, spec)
    inputs = [
        grounder.prepare(read_picture(sample.image_path), sample.segments) for sample in samples
    ]
    alone = [grounder.observe(grounder.collate([one]))[0] for one in inputs]
    together = grounder.observe(grounder.collate(inputs))
    grounder.one_by_one = True
    exact = grounder.observe(grounder.collate(inputs))

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
        return build_from_config(config, spec).trainable_state()

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
    resumed = runs.train("cut", cache=runs.cache, resume=True)
    assert weights(resumed) == weights(whole)


def test_the_head_is_measured_with_the_whole_flow_afterwards(runs: Runs) -> None:
    runs.build()
    run = runs.train("run", cache=runs.cache, eval_data=[runs.source], pictures=1)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["vlm_sha256"]["before"] == summary["vlm_sha256"]["after"]
    again = evaluate_run(run, [runs.source], protocol="standard")
    assert again["data"][runs.source]["refined"]["ciou"] == summary["refined"]["ciou"]
    facts = json.loads((run / "last" / "config.json").read_text())
    assert facts["cache"] == {"maps": "float32"}
    assert [path.name for path in (run / "pictures").iterdir()] == ["00.png"]


def test_nothing_frozen_is_in_memory_during_training(runs: Runs) -> None:
    runs.build()
    config, spec = runs.config(cache=runs.cache, output=runs.folder / "run")
    from flmm_core.train import open_from_config

    grounder = open_from_config(config, spec)
    assert isinstance(grounder, CachedGrounder)
    assert not hasattr(grounder.backbone, "vlm")
    assert not list(grounder.refiner.image_encoder.parameters())
    with pytest.raises(RuntimeError, match="SAM's image encoder was not loaded"):
        grounder.refiner.image_encoder(torch.zeros(1))


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
    assert len(same) == 2
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
    assert grounder.recipe.channels == manifest.channels
    picture = read_picture(next((drawn / "images").iterdir()))
    result = grounder.ground(picture, ["red ring"])
    assert result.logits.shape == (1, picture.height, picture.width)
    runs.build(channels=5)
    assert Store(runs.cache).manifest.channels == manifest.channels


def test_more_channels_than_there_are_is_all_of_them(runs: Runs) -> None:
    runs.build(channels=10_000)
    assert runs.build(channels=10_000).samples == 0
    assert len(Store(runs.cache).manifest.channels) == Store(runs.cache).manifest.vlm.channels


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


# --- forecast and room -------------------------------------------------------------------------


def test_the_forecast_is_what_is_written(runs: Runs) -> None:
    forecast = runs.build(forecast_only=True)
    assert not runs.cache.exists()
    assert runs.build() == forecast
    assert forecast.is_exact
    written = size_on_disk(shards(runs.cache))
    assert forecast.total <= written < 1.2 * forecast.total + 10_000
    assert runs.build() == Forecast(0, 0, 0, 0, 0, is_exact=True)
    assert runs.loads == 2  # the last one loaded nothing


def test_a_disk_with_too_little_room_is_refused_before_anything_is_made(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "flmm_core.cache.build.shutil.disk_usage", lambda _: DiskUsage(10**9, 0, 1000)
    )
    with pytest.raises(RunError) as error:
        runs.build()
    first, found, repair = str(error.value).splitlines()
    assert first == f"The cache does not fit on the disk of '{runs.cache}'."
    assert found.endswith("; 1000 B are free.")
    assert "--maps" in repair
    assert not runs.cache.exists()


def test_a_disk_that_runs_full_keeps_what_is_built(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SHARD_BYTES", 1)  # a shard a sample
    save, written = building.ShardWriter.flush, []

    def full(writer: Any) -> Any:
        if len(written) == 2:
            monkeypatch.setattr("flmm_core.cache.store.save_file", out_of_room)
        written.append(writer)
        return save(writer)

    def out_of_room(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(building.ShardWriter, "flush", full)
    with pytest.raises(RunError, match="is full") as error:
        runs.build()
    assert "2 samples are kept" in str(error.value)
    assert len(shards(runs.cache)) == 2
    assert not list(runs.cache.glob("*.partial"))
    monkeypatch.undo()
    assert runs.build().samples == 4


# --- stops -------------------------------------------------------------------------------------


class StopAt(Progress):
    """Sends Ctrl-C while a sample is counted."""

    def __init__(self, sample: int) -> None:
        self.sample = sample

    def stage(self, name: str, total: int, done: int = 0) -> Any:
        outer = self

        class Counting:
            count = 0

            def __enter__(self) -> Counting:
                return self

            def __exit__(self, *error: object) -> None: ...

            def advance(self, count: int = 1, **figures: float) -> None:
                self.count += count
                if name == "Building" and self.count == outer.sample:
                    signal.raise_signal(signal.SIGINT)

        return Counting()


def test_ctrl_c_keeps_what_is_built_and_the_same_command_goes_on(runs: Runs) -> None:
    with pytest.raises(KeyboardInterrupt, match="3 of 6 samples are kept"):
        runs.build(progress=StopAt(2))
    assert len(Store(runs.cache).samples) == 3
    assert runs.build().samples == 3
    without = runs.train("without", exact=True)
    assert weights(runs.train("cached", cache=runs.cache)) == weights(without)


def test_a_killed_build_leaves_no_half_shard_in_use(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SHARD_BYTES", 1)
    runs.build()
    whole = {path.name: path.read_bytes() for path in shards(runs.cache)}
    first, second, *_ = shards(runs.cache)
    first.rename(first.with_suffix(".safetensors.partial"))
    second.write_bytes(second.read_bytes()[:-100])  # truncated
    store = Store(runs.cache)
    assert list(store.broken) == [second]
    with pytest.raises(DataError) as error:
        runs.train("run", cache=runs.cache)
    assert f"1 of its files are broken: {second}" in str(error.value)
    assert "lacks samples of this run" in str(error.value)
    assert runs.build().samples == 2
    assert {path.name: path.read_bytes() for path in shards(runs.cache)} == whole
    assert not list(runs.cache.glob("*.partial"))


# --- caches of something else ------------------------------------------------------------------


def test_a_cache_of_other_settings_names_what_differs(
    runs: Runs, random_twin: Path, tmp_path: Path
) -> None:
    runs.build()
    with pytest.raises(UsageError) as error:
        runs.train("run", cache=runs.cache, prompt="What is there?", head__pool="max")
    assert str(error.value).splitlines()[:3] == [
        f"The cache in '{runs.cache}' was not made for this run.",
        "  prompt: cache 'Please give me a description of the image.', run 'What is there?'",
        "  pool: cache 'mean', run 'max'",
    ]
    assert not (tmp_path / "run").exists()

    other = tmp_path / "other"
    shutil.copytree(random_twin, other)
    file = other / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(UsageError, match=r"\n  model files: cache '\w{12}\.\.\.', run '\w{12}"):
        runs.train("run", cache=runs.cache, model=str(other))
    shutil.copytree(random_twin, tmp_path / "elsewhere")
    runs.train("elsewhere-run", cache=runs.cache, model=str(tmp_path / "elsewhere"))

    with pytest.raises(UsageError, match="maps: cache 'float32', run 'uint8'"):
        runs.build(maps="uint8")


def test_other_code_is_another_cache(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.build()
    monkeypatch.setattr("flmm_core.cache.key._code", lambda spec: "changed")
    with pytest.raises(UsageError, match=r"\n  code: cache "):
        runs.train("run", cache=runs.cache)


def test_a_cache_without_hidden_rows_serves_no_head_that_reads_text(runs: Runs) -> None:
    runs.build(sam__text=False)
    with pytest.raises(UsageError, match="hidden rows: cache False, run True"):
        runs.train("run", cache=runs.cache)
    runs.train("run", cache=runs.cache, sam__text=False)


def test_a_cache_with_more_serves_a_run_that_needs_less(runs: Runs) -> None:
    runs.build()
    runs.train("run", cache=runs.cache, refiner="none")


def test_samples_that_are_not_in_the_cache_are_named(
    runs: Runs, drawn: Path, tmp_path: Path
) -> None:
    runs.build()
    with pytest.raises(DataError, match="lacks samples of this run") as error:
        runs.train("run", cache=runs.cache, val_data=[runs.source])
    assert "refcoco@train/" in str(error.value)
    assert runs.build(val_data=[runs.source]).samples > 0
    runs.train("run", cache=runs.cache, val_data=[runs.source])

    changed = tmp_path / "changed"
    shutil.copytree(drawn, changed)
    picture = next((changed / "images").iterdir())
    read_picture(picture).rotate(180).save(picture)
    with pytest.raises(DataError, match="lacks samples of this run"):
        runs.train("other", cache=runs.cache, data=[f"refcoco:{changed}@train"])


def test_the_vlm_that_measures_must_be_the_one_of_the_cache(runs: Runs) -> None:
    runs.build()
    path = runs.cache / MANIFEST
    content = json.loads(path.read_text())
    content["vlm"]["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="are not those that the cache was made with"):
        runs.train("run", cache=runs.cache, eval_data=[runs.source], pictures=0)


def test_a_folder_without_a_cache_says_how_to_make_one(runs: Runs) -> None:
    with pytest.raises(UsageError) as error:
        runs.train("run", cache=runs.cache)
    assert str(error.value) == (
        f"There is no feature cache in '{runs.cache}'.\nIt is no folder.\n"
        "Make one with `flmm cache build DIR` and the settings of the run."
    )
    runs.cache.mkdir()
    (runs.cache / MANIFEST).write_text('{"format": 9}')
    with pytest.raises(DataError, match="does not describe a feature cache of this version"):
        runs.train("run", cache=runs.cache)


def test_clearing_touches_nothing_else(runs: Runs) -> None:
    runs.build()
    mine = runs.cache / "mine.safetensors"
    mine.write_text("mine")
    held = size_on_disk([*shards(runs.cache), runs.cache / MANIFEST])
    assert clear(runs.cache) == held
    assert list(runs.cache.iterdir()) == [mine]
    with pytest.raises(UsageError, match="There is no feature cache"):
        clear(runs.cache)


def test_a_shard_that_cannot_be_written_for_another_reason_is_no_full_disk(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(tensors: Any, path: Path, metadata: Any) -> None:
        raise SafetensorError("I/O error: Read-only file system (os error 30)")

    monkeypatch.setattr("flmm_core.cache.store.save_file", read_only)
    with pytest.raises(OSError, match="Read-only") as error:
        runs.build()
    assert error.value.errno == errno.EROFS
