"""The files of a run, written whole or not at all: any stop leaves a folder to go on from."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from flmm_core.config import RunConfig
from flmm_core.errors import UsageError, WeightsError
from flmm_core.pipeline.head_folder import Grounder, whole_folder

PACKAGES = ("flmm", "torch", "torchvision", "transformers", "timm", "segment-anything", "numpy")
OPTIMIZER, SCORE = "optimizer.pt", "score.json"
KEPT = 2
"""Checkpoints that stay beside the best one."""


class RunFolder:
    """One run on disk.

    Args:
        path: The folder.
        save_every: Steps between two checkpoints, for messages.
    """

    def __init__(self, path: Path, save_every: int) -> None:
        self.path = path
        self.save_every = save_every
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"

    def check(self, *, resume: bool) -> None:
        """`UsageError` if the folder holds a run and is not resumed, or the other way round."""
        there = (self.path / "config.yaml").exists()
        if there and not resume:
            raise UsageError(
                f"The output folder '{self.path}' holds a run already.",
                found=f"Its last checkpoint: {self.last() or 'none'}.",
                repair="Give another --output, or go on with --resume.",
            )
        if resume and self.last() is None:
            raise UsageError(
                f"There is nothing to resume in '{self.path}'.",
                found="It has no checkpoint." if there else "There is no run.",
                repair="Leave out --resume; a checkpoint is written every "
                f"{self.save_every} steps.",
            )

    def start(self, config: RunConfig) -> None:
        """Write the settings and what they ran on."""
        self.path.mkdir(parents=True, exist_ok=True)
        _write_text(self.path / "config.yaml", config.to_yaml())
        write_json(self.path / "environment.json", environment())

    def log(self, row: dict[str, Any]) -> None:
        """Add a line to `metrics.jsonl`."""
        with (self.path / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def save(
        self,
        grounder: Grounder,
        optimizer: torch.optim.Optimizer,
        step: int,
        facts: dict[str, Any],
    ) -> None:
        """Write `checkpoints/step-N` and point `last` to it.

        Args:
            grounder: Whose head is saved.
            optimizer: Whose state is saved beside it.
            step: N.
            facts: For the head's `config.json`.
        """
        folder = self.step(step)
        with whole_folder(folder) as aside:
            grounder.write_head(aside, **facts)
            torch.save({"step": step, "optimizer": optimizer.state_dict()}, aside / OPTIMIZER)
        self._point("last", folder)
        self._prune()

    def rate(self, step: int, score: float) -> None:
        """Note a checkpoint's score on validation data; point `best` to it if none is higher."""
        folder = self.step(step)
        best = self.best()
        if best is None or score >= _score(best):
            write_json(folder / SCORE, {"validation_ciou": score})
            self._point("best", folder)
            self._prune()

    def step(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step-{step}"

    def last(self) -> Path | None:
        """The checkpoint that a resumed run goes on from."""
        return self._pointed("last")

    def best(self) -> Path | None:
        """The checkpoint with the highest validation score."""
        return self._pointed("best")

    def load_optimizer(self, optimizer: torch.optim.Optimizer, checkpoint: Path) -> int:
        """Take the optimizer's state of a checkpoint; gives its step."""
        path = checkpoint / OPTIMIZER
        try:
            state = torch.load(path, weights_only=True, map_location="cpu")
            optimizer.load_state_dict(state["optimizer"])
            return int(state["step"])
        except (OSError, RuntimeError, ValueError, KeyError, EOFError) as error:
            raise WeightsError(
                f"The optimizer's state in '{path}' cannot be read.",
                found=f"{type(error).__name__}: {error}.",
                repair="Resume from another checkpoint by pointing 'last' to it.",
            ) from error

    def _pointed(self, name: str) -> Path | None:
        link = self.path / name
        return link.resolve() if link.is_dir() else None

    def _point(self, name: str, target: Path) -> None:
        link, fresh = self.path / name, self.path / f".{name}"
        fresh.unlink(missing_ok=True)
        fresh.symlink_to(os.path.relpath(target, self.path))
        fresh.replace(link)

    def _prune(self) -> None:
        """Remove all but the newest checkpoints and the best one."""
        by_step = sorted(self.checkpoints.glob("step-*"), key=lambda p: int(p.name[5:]))
        keep = {*by_step[-KEPT:], self.best(), self.last()}
        for folder in by_step:
            if folder not in keep and folder.resolve() not in keep:
                shutil.rmtree(folder)


def _score(checkpoint: Path) -> float:
    return float(json.loads((checkpoint / SCORE).read_text(encoding="utf-8"))["validation_ciou"])


def environment() -> dict[str, Any]:
    """Versions, machine and command of this process."""
    return {
        "command": [_program(), *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "machine": platform.machine(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _program() -> str:
    name = Path(sys.argv[0]).name
    return "flmm" if name == "__main__.py" else name


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def write_json(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    _write_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def _write_text(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
