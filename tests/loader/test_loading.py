"""Reading ahead in other processes, and how fast it goes."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from PIL import Image
from torch import Tensor

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError, RunError, dead_worker_error
from flmm_core.loader import cpus
from flmm_core.loader import dataset as counting
from flmm_core.loader.cpus import usable_cpus
from flmm_core.loader.dataset import (
    ExampleBatch,
    ExampleDataset,
    ObservedFeatures,
    count_workers,
    load_batches,
    read_batches,
)
from flmm_core.loader.samplers import fixed_batches
from flmm_core.loader.throughput import Throughput
from flmm_core.pipeline.build import Recipe
from tests.flows import fresh_grounder

Patch = pytest.MonkeyPatch
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(scope="module")
def source(random_twin: Path) -> ObservedFeatures:
    recipe = Recipe("qwen", str(random_twin), base_channels=4, enlarge_to=16)
    return ObservedFeatures(fresh_grounder(recipe).observer)


@pytest.fixture
def dataset(source: ObservedFeatures, drawn: Path) -> ExampleDataset:
    return ExampleDataset(open_source(f"refcoco:{drawn}@train"), source)


def tensors_of(value: Any) -> Iterator[Tensor]:
    """All tensors of a batch, in a fixed order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for key in value:
            yield from tensors_of(value[key])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from tensors_of(part)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from tensors_of(getattr(value, name))


def same_batches(one: list[ExampleBatch], two: list[ExampleBatch]) -> bool:
    if [batch.indices for batch in one] != [batch.indices for batch in two]:
        return False
    pairs = zip(tensors_of(one), tensors_of(two), strict=True)
    return all(a.dtype == b.dtype and torch.equal(a, b) for a, b in pairs)


# --- how many workers ------------------------------------------------------------------------


def test_the_number_of_workers_follows_from_cpus_and_device(monkeypatch: Patch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for found, wanted in ((1, 1), (2, 1), (6, 5), (64, counting.MOST)):
        monkeypatch.setattr(counting, "usable_cpus", lambda found=found: found)
        assert count_workers("auto", CUDA) == wanted
        assert count_workers("auto", CPU) == 0
        assert [count_workers(asked, CPU) for asked in (0, 3)] == [0, 3]
        assert [count_workers(asked, CUDA) for asked in (0, 3)] == [0, 3]
    monkeypatch.setattr(counting, "usable_cpus", lambda: 16)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert count_workers("auto", CUDA) == 3


def test_a_quota_of_a_container_counts(monkeypatch: Patch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(12)), raising=False)
    monkeypatch.setattr(cpus, "QUOTA", tmp_path / "cpu.max")
    assert usable_cpus() == 12
    for text, wanted in (("max 100000", 12), ("250000 100000", 2), ("20000 100000", 1)):
        (tmp_path / "cpu.max").write_text(text + "\n")
        assert usable_cpus() == wanted


# --- what the model is shown ---


def test_an_image_annotated_as_stored_is_prepared_as_stored(
    source: ObservedFeatures, dataset: ExampleDataset, tmp_path: Path
) -> None:
    """Also when the sample before it has the same image, turned."""
    exif = Image.Exif()
    exif[0x0112] = 3
    sample = dataset.samples[0]
    with Image.open(sample.image_path) as image:
        image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "turned.png", exif=exif)
        image.transpose(Image.Transpose.ROTATE_180).save(tmp_path / "plain.png")
    turned = replace(sample, image_path=tmp_path / "turned.png")
    plain = replace(sample, image_path=tmp_path / "plain.png")

    def shown(sample: Sample) -> list[Tensor]:
        return list(tensors_of(source.prepare(sample)))

    upright, stored = shown(sample), shown(plain)
    assert all(map(torch.equal, shown(turned), upright))
    assert all(map(torch.equal, shown(replace(turned, as_stored=True)), stored))
    assert not all(map(torch.equal, upright, stored))


# --- the same batches, wherever they are read ------------------------------------------------


@pytest.mark.multiprocess
def test_workers_give_the_same_batches(dataset: ExampleDataset) -> None:
    own = [list(load_batches(dataset, batch_size=3, workers=number)) for number in (0, 1, 2)]
    assert len(own[0]) > 2
    assert same_batches(own[0], own[1])
    assert same_batches(own[0], own[2])


@pytest.mark.multiprocess
def test_images_that_samples_share_stay_shared_on_their_way(
    dataset: ExampleDataset, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, device=None: self.clone())
    places = [place for place, sample in enumerate(dataset.samples)
              if sample.image_path == dataset.samples[0].image_path]  # fmt: skip
    other = next(place for place in range(len(dataset)) if place not in places)
    assert len(places) > 1
    batch = [*places, other]
    for number in (0, 1):
        (examples,) = load_batches(dataset, sampler=[batch], workers=number)
        for found in (examples, examples.pin_memory()):
            assert found.inputs.image_of == (*[0] * len(places), 1)
            assert len(found.inputs.images) == 2
            assert same_batches([found], [examples])
        pinned = examples.pin_memory()
        assert pinned.inputs.images[0] is not examples.inputs.images[0]
        for key, tensor in pinned.inputs.backbone.tensors.items():
            assert tensor is not examples.inputs.backbone.tensors[key]
        assert pinned.truths[0] is not examples.truths[0]


def test_batches_without_images_for_a_refiner_can_be_pinned(
    dataset: ExampleDataset, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(Tensor, "pin_memory", lambda self, device=None: self.clone())
    (examples,) = load_batches(dataset, sampler=[[0, 1]])
    bare = replace(examples, inputs=replace(examples.inputs, images=(), image_of=()))
    assert bare.pin_memory().inputs.images == ()


def test_a_worker_that_is_not_forked_gets_no_weights(dataset: ExampleDataset) -> None:
    packed = pickle.dumps(dataset)
    light = pickle.loads(packed)
    assert light.source.observer.backbone.vlm is None
    assert len(packed) < 2_000_000  # mostly the tokenizer
    pairs = zip(tensors_of(light[3]), tensors_of(dataset[3]), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


# --- errors and ends -------------------------------------------------------------------------


@pytest.mark.multiprocess
def test_an_error_in_a_worker_is_the_same_message(source: ObservedFeatures, tmp_path: Path) -> None:
    folder = FORMATS["refcoco"].write(tmp_path, draw_images(3, seed=5)) or tmp_path
    samples = open_source(f"refcoco:{folder}@train")
    samples[1].image_path.write_bytes(b"\xff\xd8 no image")
    said = []
    for number in (0, 2):
        with pytest.raises(DataError) as error:
            list(load_batches(ExampleDataset(samples, source), workers=number))
        said.append(str(error.value))
    assert said[0] == said[1]
    assert str(samples[1].image_path) in said[0]


class Deadly(ExampleDataset):
    """Kills the process that reads the third sample, as the kernel does when memory is short."""

    def __getitem__(self, index: int) -> Any:
        if index == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


@pytest.mark.multiprocess
def test_a_worker_that_dies_is_told(dataset: ExampleDataset) -> None:
    deadly = Deadly(dataset.samples, dataset.source)
    # PyTorch may learn of it outside of our hands, from a signal; the command line words it then.
    with pytest.raises((RunError, RuntimeError)) as error:
        list(load_batches(deadly, workers=1))
    told = error.value if isinstance(error.value, RunError) else dead_worker_error(error.value)
    assert told is not None
    assert told.asked == "A DataLoader worker died."


@pytest.mark.parametrize(
    "killed",
    [
        RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"),
        ConnectionResetError(104, "Connection reset by peer"),
        EOFError(),
    ],
)
def test_whatever_a_killed_worker_leaves_is_told(
    killed: Exception, dataset: ExampleDataset, monkeypatch: Patch
) -> None:
    def broken(self: object) -> Iterator[object]:
        raise killed
        yield

    monkeypatch.setattr("torch.utils.data.DataLoader.__iter__", broken)
    with pytest.raises(RunError) as error:
        list(load_batches(dataset))
    first, found, repair = str(error.value).splitlines()
    assert first == "A DataLoader worker died."
    assert found == (str(killed) or "EOFError")
    assert repair == ("The machine may be out of memory or of /dev/shm: use fewer --workers, or 0.")


@pytest.mark.multiprocess
def test_workers_end_with_the_batches(dataset: ExampleDataset) -> None:
    before = set(psutil.Process().children())
    batches = read_batches(dataset, fixed_batches(len(dataset), 1), workers=2)
    next(batches)
    workers = [one for one in psutil.Process().children() if one not in before]
    assert len(workers) >= 2
    batches.close()
    _, alive = psutil.wait_procs(workers, timeout=20)
    # What starts them serves the next ones, too.
    assert [one for one in alive if "resource_tracker" not in " ".join(one.cmdline())] == []


@pytest.mark.multiprocess
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sends signals to a process group")
def test_ctrl_c_leaves_no_worker_behind(random_twin: Path, drawn: Path, tmp_path: Path) -> None:
    source = f"refcoco:{drawn}@train"
    settings = {
        "backbone": "qwen", "model": random_twin, "data": source, "val-data": "",
        "eval-data": "", "output": tmp_path / "run", "steps": 100_000, "log-every": 1,
        "workers": 2, "refiner": "none", "head-base-channels": 4, "device": "cpu",
    }  # fmt: skip
    options = [str(part) for key, value in settings.items() for part in (f"--{key}", value)]
    process = subprocess.Popen(
        [sys.executable, "-m", "flmm_core", "train", *options],
        start_new_session=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log, deadline = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count("\n") > 2):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers, too
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "is saved. Resume with" in said
    assert "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)


# --- throughput ------------------------------------------------------------------------------


def test_throughput_counts_images_phrases_and_waiting(drawn: Path) -> None:
    now = 0.0
    samples = list(open_source(f"refcoco:{drawn}@train", "flmm-paper"))[:2]

    def slow() -> Iterator[int]:
        nonlocal now
        for number in range(2):
            now += 3
            yield number

    throughput = Throughput(lambda: now)
    for _ in throughput.waiting(slow()):
        now += 1
        throughput.count(samples)
    with throughput.pause():
        now += 100
    phrases = sum(len(sample.phrases) for sample in samples)
    rates = throughput.lap()
    assert (rates.images_per_second, rates.phrases_per_second, rates.waiting) == (
        0.5, phrases / 4, 0.75,
    )  # fmt: skip
    assert rates.to_dict() == {
        "pictures_per_second": 0.5,
        "phrases_per_second": phrases / 4,
        "share_waiting_for_data": 0.75,
    }
    now += 2
    assert throughput.figures() == {
        "images/s": "0.5", "waiting": "75 %", "phrases/s": f"{phrases / 4:g}",
    }  # fmt: skip
    throughput.count([samples[0], samples[0]])
    assert throughput.lap().images_per_second == 0.5
    assert throughput.figures()["images/s"] == "0.5"
