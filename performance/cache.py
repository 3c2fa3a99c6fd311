"""Training epochs with a feature cache and without one, and what building the cache takes."""

from __future__ import annotations

import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flmm_core.config import RunConfig, SkipLimit, load_config
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.left_out import LeftOut
from flmm_core.feature_cache.build import build_cache
from flmm_core.feature_cache.store import shards
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress
from flmm_core.spec import BackboneSpec
from flmm_core.training.loop import TrainingLoop
from flmm_core.training.preflight import open_data
from flmm_core.training.run_folder import RunFolder
from flmm_core.training.setup import Setup, open_cached, open_observed
from performance.models import MEDIUM, parts, random_model
from performance.tables import mib, ratio, seconds, table

COLUMNS = (
    "| model | image tokens | images | epoch without cache, s | epoch with cache, s "
    "| speedup | building the cache, s | size, MiB |"
)
IMAGES = {"tiny": 4, "medium": 8}
SIDE = 39
"""The medium model's images have 39 × 39 tokens."""


@dataclass(frozen=True)
class Epochs:
    """What was measured.

    Attributes:
        model: "tiny" or "medium".
        image_tokens: Per image; 0 where the model chooses.
        images: Per epoch, all in one batch.
        without: Seconds of each epoch that runs the frozen models.
        cached: Seconds of each epoch that reads the cache.
        building: Seconds to build the cache.
        bytes: Its size.
    """

    model: str
    image_tokens: int
    images: int
    without: tuple[float, ...]
    cached: tuple[float, ...]
    building: float
    bytes: int


def measure(size: str, repeats: int, until: float) -> tuple[list[Epochs], str]:
    """The figures, and their table."""
    with tempfile.TemporaryDirectory() as name:
        found = _epochs(Path(name), size, repeats)
    without, cached = statistics.median(found.without), statistics.median(found.cached)
    line = (
        found.model,
        found.image_tokens or "–",
        found.images,
        seconds(without),
        seconds(cached),
        ratio(without / cached),
        seconds(found.building),
        mib(found.bytes),
    )
    return [found], table(COLUMNS, [line])


def _epochs(folder: Path, size: str, repeats: int) -> Epochs:
    FORMATS["refcoco"].write(folder / "scenes", draw_images(IMAGES[size], seed=5, kinds=("plain",)))
    model = "tiny" if size == "tiny" else str(_write_model(folder / "model"))
    plain, spec = _config(folder, model, batch_size=IMAGES[size])
    samples = open_data(plain, Progress()).samples
    cache = folder / "cache"
    started = time.perf_counter()
    build_cache(cache, plain, spec)
    building = time.perf_counter() - started
    reading, _ = _config(folder, model, batch_size=IMAGES[size], cache=cache)
    without = open_observed(plain, spec, Progress())
    cached = open_cached(reading, spec, Progress())
    cached.source.expect(samples, LeftOut(samples, SkipLimit.given("0")), Progress())
    taken: dict[str, list[float]] = {"without": [], "cached": []}
    for _ in range(repeats + 1):
        taken["without"].append(_epoch(plain, without, samples, folder))
        taken["cached"].append(_epoch(reading, cached, samples, folder))
    return Epochs(
        model=size,
        image_tokens=0 if size == "tiny" else SIDE**2,
        images=IMAGES[size],
        without=tuple(taken["without"][1:]),  # the first epoch warms up
        cached=tuple(taken["cached"][1:]),
        building=building,
        bytes=sum(path.stat().st_size for path in shards(cache)),
    )


def _write_model(folder: Path) -> Path:
    """The medium model as a folder; every image is resized to `SIDE` × `SIDE` tokens or so."""
    config, processor = parts(MEDIUM)
    side = SIDE * MEDIUM.cell
    processor.image_processor.size = {
        "shortest_edge": (side - MEDIUM.cell // 2) ** 2,
        "longest_edge": (side + MEDIUM.cell // 2) ** 2,
    }
    random_model(config, torch.float32).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _config(folder: Path, model: str, **more: Any) -> tuple[RunConfig, BackboneSpec]:
    """One epoch over the scenes, in one step."""
    values = {
        "backbone": "qwen",
        "model": model,
        "data": [f"refcoco:{folder / 'scenes'}@train"],
        "eval_data": [],
        "val_data": [],
        "output": folder / "run",
        "steps": 1,
        "save_every": 10**6,
        "device": "cpu",
        **more,
    }
    return load_config(None, values, load_backbones().get)


def _epoch(config: RunConfig, setup: Setup, samples: Any, folder: Path) -> float:
    """Seconds of one epoch, with its checkpoint at the end."""
    run = RunFolder(folder / "run", 1, config.steps)
    run.path.mkdir(exist_ok=True)
    left_out = LeftOut(samples, SkipLimit.given("0"))
    loop = TrainingLoop(config, setup, samples, (), run, Progress(), left_out)
    started = time.perf_counter()
    loop.run()
    return time.perf_counter() - started
