"""Everything that can be wrong with a cache of features: room, stops, caches of something else."""

from __future__ import annotations

import errno
import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from flmm_core import UsageError, WeightsError
from flmm_core.data.images import read_image
from flmm_core.errors import DataError, RunError
from flmm_core.feature_cache import build as building
from flmm_core.feature_cache.build import Forecast
from flmm_core.feature_cache.store import MANIFEST, Store, clear, shards
from tests.cached import Runs, weights
from tests.stopping import StopAt

DiskUsage = namedtuple("DiskUsage", "total used free")


# --- forecast and room -------------------------------------------------------------------------


def test_the_forecast_is_what_is_written(runs: Runs) -> None:
    forecast = runs.build(forecast_only=True)
    assert not runs.cache.exists()
    assert runs.build() == forecast
    assert forecast.is_exact
    written = sum(path.stat().st_size for path in shards(runs.cache))
    assert forecast.total <= written < 1.2 * forecast.total + 10_000
    assert runs.build() == Forecast(0, 0, 0, 0, 0, is_exact=True)
    assert runs.loads == 2  # the last one loaded nothing


def test_a_disk_with_too_little_room_is_refused_before_anything_is_made(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flmm_core.files.shutil.disk_usage", lambda _: DiskUsage(10**9, 0, 1000))
    with pytest.raises(RunError) as error:
        runs.build()
    first, found, repair = str(error.value).splitlines()
    assert first == f"The cache does not fit on the disk of '{runs.cache}'."
    assert found.endswith("; 1.0 kB are free.")
    assert "--maps" in repair
    assert not runs.cache.exists()


def test_a_disk_that_runs_full_keeps_what_is_built(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "SHARD_BYTES", 1)  # a shard a sample
    save, written = building.ShardWriter.flush, []

    def full(writer: Any) -> Any:
        if len(written) == 2:
            monkeypatch.setattr("flmm_core.feature_cache.store.save_file", out_of_room)
        written.append(writer)
        return save(writer)

    def out_of_room(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_bytes(b"half")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(building.ShardWriter, "flush", full)
    with pytest.raises(RunError, match="is full") as error:
        runs.build()
    assert "2 samples are saved" in str(error.value)
    assert len(shards(runs.cache)) == 2
    assert not list(runs.cache.glob("*.partial"))
    monkeypatch.undo()
    assert runs.build().samples == 4


# --- stops -------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_built_and_the_same_command_goes_on(runs: Runs) -> None:
    with pytest.raises(KeyboardInterrupt, match="3 of 6 samples are saved"):
        runs.build(progress=StopAt("Building", 2))
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
        f"The cache in '{runs.cache}' was not built for this run.",
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
    monkeypatch.setattr("flmm_core.feature_cache.key._code", lambda spec: "changed")
    with pytest.raises(UsageError, match=r"\n  code: cache "):
        runs.train("run", cache=runs.cache)


def test_a_cache_without_hidden_rows_serves_no_head_that_reads_text(runs: Runs) -> None:
    attention = {"refiner_options__text": False, "head__presence": False}
    runs.build(**attention)
    with pytest.raises(UsageError, match="hidden states: cache False, run True"):
        runs.train("run", cache=runs.cache)
    runs.train("run", cache=runs.cache, **attention)


def test_a_cache_with_more_serves_a_run_that_needs_less(runs: Runs) -> None:
    runs.build()
    runs.train("run", cache=runs.cache, refiner="none")


def test_samples_that_were_added_without_a_refiner_are_made_again_for_one(runs: Runs) -> None:
    runs.build()
    runs.build(val_data=[runs.source], refiner="none")
    forecast = runs.build(val_data=[runs.source])
    assert forecast.samples == 0  # the images of these sentences were encoded before
    for path in shards(runs.cache):
        path.unlink()
    runs.build(refiner="none")
    with pytest.raises(DataError, match="lacks samples of this run"):
        runs.train("run", cache=runs.cache)
    assert runs.build().images == 6
    runs.train("run", cache=runs.cache)


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
    picture = next(changed.rglob("*.png"))
    read_image(picture).rotate(180).save(picture)
    with pytest.raises(DataError, match="lacks samples of this run"):
        runs.train("other", cache=runs.cache, data=[f"refcoco:{changed}@train"])


def test_the_vlm_that_measures_must_be_the_one_of_the_cache(runs: Runs) -> None:
    runs.build()
    path = runs.cache / MANIFEST
    content = json.loads(path.read_text())
    content["sha256"] = "0" * 64
    path.write_text(json.dumps(content))
    with pytest.raises(WeightsError, match="are not those that the cache was built with"):
        runs.train("run", cache=runs.cache, eval_data=[runs.source], pictures=0)


def test_a_folder_without_a_cache_says_how_to_make_one(runs: Runs) -> None:
    with pytest.raises(UsageError) as error:
        runs.train("run", cache=runs.cache)
    assert str(error.value) == (
        f"There is no feature cache in '{runs.cache}'.\nIt is not a folder.\n"
        "Build one with `flmm cache build DIR` and the settings of the run."
    )
    runs.cache.mkdir()
    (runs.cache / MANIFEST).write_text('{"format": 9}')
    with pytest.raises(DataError, match="does not describe a feature cache of this version"):
        runs.train("run", cache=runs.cache)


def test_clearing_touches_nothing_else(runs: Runs) -> None:
    runs.build()
    mine = runs.cache / "mine.safetensors"
    mine.write_text("mine")
    held = sum(path.stat().st_size for path in (*shards(runs.cache), runs.cache / MANIFEST))
    assert clear(runs.cache) == held
    assert list(runs.cache.iterdir()) == [mine]
    with pytest.raises(UsageError, match="There is no feature cache"):
        clear(runs.cache)


def test_a_shard_that_cannot_be_written_for_another_reason_is_no_full_disk(
    runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(tensors: Any, path: Path, metadata: Any) -> None:
        raise SafetensorError("I/O error: Read-only file system (os error 30)")

    monkeypatch.setattr("flmm_core.feature_cache.store.save_file", read_only)
    with pytest.raises(OSError, match="Read-only") as error:
        runs.build()
    assert error.value.errno == errno.EROFS
