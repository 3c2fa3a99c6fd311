"""Caches and runs of one folder, behind a toy model."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from flmm_core.config import load_config
from flmm_core.feature_cache.build import Forecast, build_cache
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress
from flmm_core.training.train import train


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder that one of the tests' workers makes and all read."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with FileLock(f"{folder}.lock"):
        if not done.exists():
            make(folder)
            done.touch()
    return folder


class Loads(Progress):
    """Counts how often the frozen models are loaded."""

    count = 0

    def say(self, text: str) -> None:
        self.count += text == "Loading the frozen models"


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
        counting = Loads()
        keep.setdefault("progress", counting)
        forecast = build_cache(
            self.cache, *self.config(**more), maps=maps, channels=channels, **keep
        )
        self.loads += counting.count
        return forecast

    def train(self, name: str, *, progress: Progress | None = None, **more: Any) -> Path:
        return train(*self.config(output=self.folder / name, **more), progress=progress)


def weights(run: Path) -> bytes:
    return (run / "last" / "model.safetensors").read_bytes()
