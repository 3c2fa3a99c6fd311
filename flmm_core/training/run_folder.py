"""The files of a run, written atomically: a run can be resumed after any stop."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from flmm_core.config import RunConfig
from flmm_core.errors import UsageError, WeightsError
from flmm_core.feature_cache.key import package_version
from flmm_core.files import whole_file, whole_folder, write_json, write_text
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import HeadInfo, write_head

PACKAGES = ("flmm", "torch", "torchvision", "transformers", "segment-anything", "numpy")
OPTIMIZER, SCORE = "optimizer.pt", "score.json"
KEPT = 2
"""Number of newest checkpoints that are kept, besides the best one."""


class RunFolder:
    """One run on disk, with a checkpoint every `save_every` steps."""

    def __init__(self, path: Path, save_every: int) -> None:
        self.path = path
        self.save_every = save_every
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"

    def check(self, *, resume: bool) -> None:
        """`UsageError` if the folder has a run and is not resumed, or vice versa."""
        there = (self.path / "config.yaml").exists()
        if there and not resume:
            raise UsageError(
                f"The output folder '{self.path}' already contains a run.",
                found=f"Its last checkpoint: {self.last() or 'none'}.",
                repair="Give another --output, or resume with --resume.",
            )
        if resume and self.last() is None:
            raise UsageError(
                f"There is nothing to resume in '{self.path}'.",
                found="It has no checkpoint." if there else "There is no run.",
                repair=f"Omit --resume; a checkpoint is written every {self.save_every} steps.",
            )

    def start(self, config: RunConfig) -> None:
        """Write `config.yaml` and `environment.json`."""
        write_text(self.path / "config.yaml", config.to_yaml())
        write_json(self.path / "environment.json", environment())

    def log(self, row: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save(self, step: int, optimizer: torch.optim.Optimizer, head: Head, info: HeadInfo) -> None:
        """Write `checkpoints/step-N` and link `last` to it."""
        folder = self.step(step)
        with whole_folder(folder, replace=True) as aside:
            write_head(aside, head, info)
            torch.save({"step": step, "optimizer": optimizer.state_dict()}, aside / OPTIMIZER)
        self._point("last", folder)
        self._prune()

    def rate(self, step: int, score: float) -> None:
        """Write the validation score of a checkpoint; link `best` to it if none is higher."""
        folder = self.step(step)
        best = self.best()
        if best is None or score >= json.loads((best / SCORE).read_bytes())["validation_ciou"]:
            write_json(folder / SCORE, {"validation_ciou": score})
            self._point("best", folder)
            self._prune()

    def step(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step-{step}"

    def last(self) -> Path | None:
        """The checkpoint to resume from."""
        return self._pointed("last")

    def best(self) -> Path | None:
        """The checkpoint with the highest validation score."""
        return self._pointed("best")

    def load_optimizer(self, optimizer: torch.optim.Optimizer, checkpoint: Path) -> int:
        """Load the optimizer's state of a checkpoint; returns its step."""
        path = checkpoint / OPTIMIZER
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            optimizer.load_state_dict(state["optimizer"])
            return int(state["step"])
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise WeightsError(
                f"The optimizer state in '{path}' cannot be read.",
                found=f"{type(error).__name__}: {error}.",
                repair="Resume from another checkpoint by linking 'last' to it.",
            ) from error

    def _pointed(self, name: str) -> Path | None:
        link = self.path / name
        return link.resolve() if link.is_dir() else None

    def _point(self, name: str, target: Path) -> None:
        with whole_file(self.path / name) as fresh:
            fresh.symlink_to(os.path.relpath(target, self.path))

    def _prune(self) -> None:
        """Remove all but the newest checkpoints and the best one."""
        by_step = sorted(self.checkpoints.glob("step-*"), key=lambda p: int(p.name[5:]))
        keep = {*by_step[-KEPT:], self.best(), self.last()}
        for folder in by_step:
            if folder not in keep and folder.resolve() not in keep:
                shutil.rmtree(folder)


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process."""
    program = Path(sys.argv[0]).name
    return {
        "command": ["flmm" if program == "__main__.py" else program, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
