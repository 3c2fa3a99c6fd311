"""What a run says that it will take, and that saying it changes nothing."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from flmm_core.cli import main
from flmm_core.config import load_config
from flmm_core.data.sources import open_source
from flmm_core.errors import RunError
from flmm_core.loader.dataset import ExampleDataset
from flmm_core.loader.remembered import RememberedFeatures
from flmm_core.loader.samplers import StepSampler, sample_extents
from flmm_core.progress import LineProgress, Progress
from flmm_core.training import forecast as forecasting
from flmm_core.training import step_cost
from flmm_core.training.forecast import describe, forecast, peak_memory
from flmm_core.training.loop import TrainingLoop
from flmm_core.training.preflight import RunData, check_run
from flmm_core.training.run_folder import RunFolder
from flmm_core.training.step_cost import StepCost, alike, by_length, known_samples, typical
from flmm_core.training.train import prepare, train
from flmm_core.world import World, part

Patch = pytest.MonkeyPatch
Settings = Callable[..., Any]


@pytest.fixture
def settings(random_twin: Path, drawn: Path, tmp_path: Path, monkeypatch: Patch) -> Settings:
    """Of a run of two short steps; keywords override, with "__" for the dot."""
    monkeypatch.setattr(step_cost, "LONGEST", 0.0)
    source = f"refcoco:{drawn}@train"

    def make(name: str = "run", **more: Any) -> Any:
        values: dict[str, Any] = {
            "backbone": "qwen",
            "model": str(random_twin),
            "data": [source],
            "val_data": [],
            "eval_data": [],
            "refiner": "none",
            "output": tmp_path / name,
            "steps": 2,
            "batch_size": 2,
            "save_every": 1,
            "pictures": 1,
            "head.base_channels": 4,
            "head.enlarge_to": 16,
        }
        values |= {key.replace("__", "."): value for key, value in more.items()}
        return load_config(None, values)

    return make


def prepared(config: Any, spec: Any) -> tuple[TrainingLoop, RunData]:
    data = check_run(config, spec, Progress())
    folder = RunFolder(config.output, config.save_every, config.steps)
    return prepare(config, config, spec, data, folder, Progress(), World()), data


@pytest.mark.parametrize("cache_memory", [0.0, 1.0])
def test_a_forecast_changes_no_bit_of_a_run(
    settings: Settings, monkeypatch: Patch, cache_memory: float
) -> None:
    heads, said = [], list[str]()
    for name, worth_it in (("with", 1), ("without", 10**6)):
        monkeypatch.setattr(forecasting, "WORTH_IT", worth_it)
        chosen = settings(name, refiner="sam", cache_memory=cache_memory)
        folder = train(*chosen, progress=LineProgress(said.append))
        heads.append((folder / "last" / "model.safetensors").read_bytes())
    assert heads[0] == heads[1]
    assert sum(line.startswith("Takes about ") for line in said) == 1
    assert sum(line.startswith("Training data: ") for line in said) == 2


def test_what_a_forecast_observed_is_known_to_the_run(settings: Settings) -> None:
    loop, data = prepared(*settings(cache_memory=1.0))
    forecast(loop, data.held_out)
    memory = loop.trained_on
    assert isinstance(memory, RememberedFeatures)
    dataset = ExampleDataset(loop.samples, memory)
    unknown = [dataset.example(index).inputs[1] for index in range(len(dataset))]
    assert 0 < unknown.count(None) == memory.count
    room = memory.bytes - 1
    known = memory.forget()
    assert memory.bytes == memory.count == 0
    memory.limit = room
    memory.know(known)
    assert memory.count == len(known) - 1


def test_a_forecast_leaves_weights_optimizer_and_chance_alone(settings: Settings) -> None:
    loop, data = prepared(*settings())
    before = {key: value.clone() for key, value in loop.head.state_dict().items()}
    groups = [dict(group) for group in loop.optimizer.param_groups]
    chance = torch.get_rng_state()
    forecast(loop, data.held_out)
    assert all(torch.equal(before[key], value) for key, value in loop.head.state_dict().items())
    assert not loop.optimizer.state
    assert all(weight.grad is None for weight in loop.weights)
    assert [dict(group) for group in loop.optimizer.param_groups] == groups
    assert torch.equal(torch.get_rng_state(), chance)


def test_a_forecast_counts_every_step_and_sample(settings: Settings, monkeypatch: Patch) -> None:
    monkeypatch.setattr(forecasting, "time_steps", lambda *_: StepCost(10.0, 10.0))
    monkeypatch.setattr(forecasting, "_time_evaluation", lambda *_: 1.0)
    source = settings()[0].data
    loop, data = prepared(*settings(steps=5, save_every=2, val_data=source, eval_data=source))
    found = forecast(loop, data.held_out)
    assert found.training == 50
    assert found.validation == 3 * len(loop.watched)  # after steps 2, 4 and 5
    assert found.evaluation == len(open_source(source[0])) + 1  # a picture
    assert found.trained == sum(w.numel() for w in loop.head.parameters() if w.requires_grad)
    assert found.vlm == sum(w.numel() for w in loop.source.observer.backbone.vlm.parameters())


def test_the_disk_that_is_forecast_is_what_a_run_leaves(settings: Settings) -> None:
    config, spec = settings()
    loop, data = prepared(config, spec)
    told = forecast(loop, data.held_out).disk_bytes
    folder = train(config, spec)
    left = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    one = sum(path.stat().st_size for path in (folder / "last").resolve().iterdir())
    # What is left, and at most the best checkpoint and one that is being written.
    assert left * 0.95 < told < left + 2 * one


def test_a_run_that_does_not_fit_on_its_disk_is_not_begun(
    settings: Settings, monkeypatch: Patch
) -> None:
    loop, data = prepared(*settings())
    monkeypatch.setattr(forecasting, "free_bytes", lambda path: 1000)
    with pytest.raises(RunError) as error:
        forecast(loop, data.held_out)
    assert "1.0 kB are free." in str(error.value)
    assert "--save-every" in str(error.value)


def test_memory_that_was_held_and_freed_counts() -> None:
    if (reset := Path("/proc/self/clear_refs")).exists():
        reset.write_text("5", encoding="ascii")  # another test may have held more
    before = peak_memory()
    block = torch.ones(64 << 20)
    del block
    assert 200 << 20 < peak_memory() - before < 320 << 20


def test_typical_samples_are_neither_short_nor_long(settings: Settings) -> None:
    samples = open_source(settings()[0].data[0])
    every = sample_extents(samples)[:, 2]
    order = by_length(samples)
    chosen = [typical(order, 4, number) for number in range(6)]
    assert all(len(set(one)) == 4 for one in chosen)
    assert len({*map(tuple, chosen)}) > 1
    means = [every[one].mean() for one in chosen]
    assert sum(means) / 6 == pytest.approx(every.mean(), rel=0.1)


def test_a_description_counts_what_is_read(settings: Settings) -> None:
    source = settings()[0].data
    loop, data = prepared(*settings(val_data=source))
    total, watched = len(loop.samples), len(loop.watched)
    length = f"{-(-total // 2)} steps an epoch; 2 steps of 2 are {4 / total:.2f} epochs"
    assert describe(loop, data.held_out) == [
        f"Training data: {source[0]} ({total} samples), {length}",
        f"Validation: {source[0]} ({watched} samples), every 1 steps",
    ]


def test_a_dry_run_says_what_the_run_will_take_and_is_a_configuration(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = settings()[0].data
    config, _ = settings("never", val_data=source)
    file = tmp_path / "run.yaml"
    file.write_text(config.to_yaml())
    assert main(["train", "--config", str(file), "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert yaml.safe_load(shown) == yaml.safe_load(config.to_yaml())
    for expected in (
        r"# Training data: refcoco:.* samples\)",
        r"# Trained parameters: [\d.]+ M of [\d.]+ M in the head; the frozen model has [\d.]+ M",
        r"# Takes about 0:\d\d:\d\d: training 0:\d\d:\d\d \([\d.]+ s a step\), validation ",
        r"# Memory: [\d.]+ [MG]B of [\d.]+ GB\. Disk: [\d.]+ [kM]B of ",
    ):
        assert re.search(rf"^{expected}", shown, re.MULTILINE), expected
    assert not config.output.exists()


@pytest.mark.parametrize("processes", [1, 2, 3])
@pytest.mark.parametrize("steps", [3, 40, 95])
@pytest.mark.parametrize("fits", [1.0, 0.4])
def test_a_forecast_knows_how_many_samples_will_be_known(
    settings: Settings, processes: int, steps: int, fits: float
) -> None:
    """Against what processes come across in the real order of samples, 40 of them."""
    each, total = 1000, 40
    config, _ = settings(cache_memory=fits * total * each / 1e9, steps=steps, batch_size=6)
    memory = RememberedFeatures.__new__(RememberedFeatures)
    memory.limit = round(fits * total * each)
    loop: Any = SimpleNamespace(config=config, samples=range(total), trained_on=memory)
    kept, hits, drawn = [set[int]() for _ in range(processes)], 0, 0
    for batch in StepSampler(total, 6, range(steps), seed=3):
        for rank in range(processes):
            for index in part(batch, rank, processes):
                drawn += 1
                hits += index in kept[rank]
                if len(kept[rank]) < fits * total:
                    kept[rank].add(index)
    found = known_samples(loop, steps, processes, each)
    assert found.share == pytest.approx(hits / drawn, abs=0.04)
    assert found.bytes == pytest.approx(each * max(map(len, kept)), rel=0.15)


def test_a_forecast_of_buckets_times_images_of_similar_shape() -> None:
    samples = open_source("shapes@test")
    order = by_length(samples)
    extents = sample_extents(samples)
    every = extents[:, 0] / extents[:, 1]
    seen = []
    for number in range(4):
        some = alike(samples, order, number)
        assert some == [index for index in order if index in set(some)]
        shapes = every[some]
        assert shapes.std() < every.std() / 2
        seen.append(shapes.mean())
    assert max(seen) - min(seen) > every.std()
