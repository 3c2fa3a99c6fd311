"""Caches and runs of one folder, behind a toy model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_core.config import load_config
from flmm_core.data.sources import open_sources
from flmm_core.feature_cache.build import BuildRequest, Forecast, build_cache
from flmm_core.plugins import load_backbones
from flmm_core.training.loop import build_from_config, facts_of, train


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


def weights(run: Path) -> bytes:
    return (run / "last" / "model.safetensors").read_bytes()
