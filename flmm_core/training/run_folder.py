"""The files of a run, written whole: a run can be resumed after any stop."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from flmm_core.config import RunConfig
from flmm_core.config.resume import (
    CONFIG,
    NOT_OF_A_RUN,
    changed_settings,
    nothing_to_resume,
)
from flmm_core.errors import RunError, UsageError, WeightsError
from flmm_core.files import (
    discard_empty,
    hold,
    naming,
    remove_folder,
    sweep,
    whole_file,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
)
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import HeadInfo, write_head
from flmm_core.plugins import package_version
from flmm_core.training.optimizer_file import write_optimizer
from flmm_core.training.trackers import Trackers, plain_settings

PACKAGES = ("flmm", "torch", "torchvision", "transformers", "segment-anything", "numpy")
ENVIRONMENT, METRICS, SUMMARY = "environment.json", "metrics.jsonl", "summary.json"
SCORE = "score.json"
LEFT_OUT = "left-out.json"


class RunFolder:
    """One run on disk, with a checkpoint every `save_every` of its `steps`, and at the last.

    Args:
        steps: 0 until they are known.
        keep: How many of the newest checkpoints of this schedule are kept, besides the best one.
    """

    def __init__(self, path: Path, save_every: int, steps: int, keep: int = 2) -> None:
        self.path = path
        self.save_every = save_every
        self.steps = steps
        self.keep = keep
        self.checkpoints = path / "checkpoints"
        self.pictures = path / "pictures"
        self.trackers: Trackers | None = None

    @contextmanager
    def opened(self, config: RunConfig) -> Iterator[dict[str, tuple[Any, Any]]]:
        """Hold the folder, and begin a run in it or resume the one that it has.

        Yields:
            The settings that a resumed run has changed: (before, now) by dotted key.

        Raises:
            UsageError: Another process holds the folder; it has a run, or none to resume; or the
                run was begun with other settings.
        """
        if config.resume and not (self.path / CONFIG).is_file():
            raise nothing_to_resume(self.path)
        with hold(self.path, "training into"):
            if not config.resume and (self.path / CONFIG).exists():
                raise UsageError(
                    f"The output folder '{self.path}' already contains a run.",
                    found=f"Its last checkpoint: {self.last() or 'none'}.",
                    repair="Give another --output, or resume with --resume.",
                )
            changed = changed_settings(self.path, config) if config.resume else {}
            for folder in (self.path, self.checkpoints):
                sweep(folder)
            if not config.resume:
                self.record(config)
            with self._explaining():
                yield changed

    @contextmanager
    def _explaining(self) -> Iterator[None]:
        """Say of a file of the run that cannot be written what is kept and what to do."""
        try:
            yield
        except OSError as error:
            path = Path(os.fsdecode(error.filename or ""))
            if not path.is_relative_to(self.path):
                raise
            raise RunError(
                f"'{path}' cannot be written.",
                found=f"{error.strerror}.",
                repair=f"Free some space or make the folder writable. {self.way_back()}",
            ) from error

    def record(self, config: RunConfig, remark: str = "", processes: int = 1) -> None:
        """Write `environment.json` and `config.yaml`, which begins with a remark of one line.

        There is no summary any more.
        """
        (self.path / SUMMARY).unlink(missing_ok=True)
        write_json(self.path / ENVIRONMENT, environment() | {"processes": processes})
        comment = f"# {remark}\n" if remark else ""
        write_text(self.path / CONFIG, comment + config.to_yaml())

    @property
    def is_finished(self) -> bool:
        """Whether the last step is saved and the scores are written."""
        try:
            summary = json.loads((self.path / SUMMARY).read_bytes())
        except (OSError, ValueError):
            return False
        end = summary.get("stopped_after", self.steps)
        return self.last() == self.step(end).resolve()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write `summary.json`: the run is finished."""
        if self.trackers is not None:
            end = summary.get("stopped_after", self.steps)
            self.trackers.finish(end, summary["evaluations"], self.pictures)
        write_json(self.path / SUMMARY, summary)

    def forget(self) -> None:
        """Undo the beginning of a run that has not trained, so that the folder is free again."""
        for name in (CONFIG, ENVIRONMENT):
            (self.path / name).unlink(missing_ok=True)
        discard_empty(self.path)

    def note_left_out(self, unusable: Mapping[int, str]) -> None:
        """Write which training samples cannot be used, so that a resumed run knows them."""
        write_json(self.path / LEFT_OUT, [[index, why] for index, why in unusable.items()])

    def left_out(self) -> dict[int, str]:
        """The training samples that could not be used, by index; none if the file is broken."""
        try:
            return {
                int(index): str(why)
                for index, why in json.loads((self.path / LEFT_OUT).read_bytes())
            }
        except (OSError, ValueError, TypeError):
            return {}

    # --- metrics ------------------------------------------------------------------------------

    def log(self, row: dict[str, Any]) -> None:
        """Append a line to `metrics.jsonl`."""
        path = self.path / METRICS
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        if self.trackers is not None:
            self.trackers.send(row)

    @contextmanager
    def tracked(self, config: RunConfig) -> Iterator[None]:
        """Send the run's figures, also those of its earlier parts, to the trackers of `config`."""
        settings = plain_settings(config.model_dump(mode="json", exclude=set(NOT_OF_A_RUN)))
        self.trackers = Trackers(self.path, config.log_with, settings)
        self.trackers.catch_up(self.rows())
        try:
            yield
        finally:
            self.trackers.close()

    def rows(self) -> list[dict[str, Any]]:
        """The lines of `metrics.jsonl`, without one that was cut off."""
        path, rows = self.path / METRICS, []
        for line in path.read_bytes().splitlines() if path.is_file() else ():
            with suppress(ValueError):
                rows.append(json.loads(line))
        return rows

    def rewind(self, step: int) -> None:
        """Remove from `metrics.jsonl` what happened after `step`, so that it is logged once.

        That includes the validation of this step if it was not finished, and a cut off line.
        """
        path = self.path / METRICS
        if not path.is_file():
            return
        kept: dict[tuple[int, bool], bytes] = {}
        for line in path.read_bytes().splitlines():
            try:
                row = json.loads(line)
                done, validation = row["step"], "validation" in row
            except (ValueError, KeyError, TypeError):
                continue
            if done < step or (done == step and not (validation and self.score(step) is None)):
                kept[done, validation] = line + b"\n"
        write_bytes(path, b"".join(kept.values()))

    def validation_scores(self) -> list[float]:
        """The scores of all validations, in order."""
        return [row["validation_ciou"] for row in self.rows() if "validation_ciou" in row]

    # --- checkpoints --------------------------------------------------------------------------

    def is_scheduled(self, step: int) -> bool:
        """Whether a run that is never stopped saves and validates after `step`."""
        return step % self.save_every == 0 or step == self.steps

    def save(
        self,
        step: int,
        optimizer: torch.optim.Optimizer,
        head: Head,
        info: HeadInfo,
        weights: Mapping[str, torch.Tensor] | None = None,
    ) -> None:
        """Write `checkpoints/step-N` and link `last` to it.

        Args:
            weights: What is trained, if `head` is an average of it.

        Raises:
            RunError: The disk is full or cannot be written, or a weight is not finite; `last` is
                still the checkpoint before.
        """
        folder = self.step(step)
        bad = [name for name, weight in head.named_parameters() if not weight.isfinite().all()]
        if bad:
            raise RunError(
                f"The head has values that are not finite after step {step}.",
                found=f"{bad[0]}{f' and {len(bad) - 1} more' if bad[1:] else ''}.",
                repair=f"{self.way_back()} Use a lower --learning-rate.",
            )
        try:
            with whole_folder(folder, replace=True, sync=True) as aside:
                write_head(aside, head, info)
                write_optimizer(aside, step, optimizer, weights)
            self._point("last", folder)
        except (OSError, SafetensorError) as error:
            raise RunError(
                f"The checkpoint '{folder}' cannot be written.",
                found=f"{getattr(error, 'strerror', None) or error}.",
                repair=f"Free some space or make the folder writable. {self.way_back()}",
            ) from error
        self.prune()

    def way_back(self) -> str:
        """A sentence on what a failed run goes on from."""
        last, command = self.last(), f"`flmm train --resume --output {self.path}`"
        if last is None:
            return f"There is no checkpoint yet; {command} begins again."
        return f"The last checkpoint, '{last}', is kept; {command} goes on from there."

    def rate(self, step: int, score: float) -> None:
        """Record that a checkpoint is validated; link `best` to it if none scores higher."""
        folder, best = self.step(step), self.best()
        write_json(folder / SCORE, {"validation_ciou": score})
        former = None if best is None else self._score(best)
        if former is None or not score < former:  # nan if nothing is there to be found
            self._point("best", folder)
        self.prune()

    def score(self, step: int) -> float | None:
        """The validation score of a checkpoint; None if it was not validated to the end."""
        return self._score(self.step(step))

    def _score(self, checkpoint: Path) -> float | None:
        path = checkpoint / SCORE
        if not path.is_file():
            return None
        try:
            return float(json.loads(path.read_bytes())["validation_ciou"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise WeightsError(
                f"The validation score in '{path}' cannot be read.",
                found=f"{type(error).__name__}: {error}.",
                repair="Remove this file: a resumed run validates its last checkpoint again.",
            ) from error

    def step(self, step: int) -> Path:
        """The checkpoint of a step."""
        return self.checkpoints / f"step-{step}"

    def last(self) -> Path | None:
        """The checkpoint to resume from."""
        return self._pointed("last")

    def best(self) -> Path | None:
        """The checkpoint with the highest validation score."""
        return self._pointed("best")

    def _pointed(self, name: str) -> Path | None:
        link = self.path / name
        return link.resolve() if link.is_dir() else None

    def _point(self, name: str, target: Path) -> None:
        with whole_file(self.path / name) as fresh:
            fresh.symlink_to(os.path.relpath(target, self.path))

    def prune(self) -> None:
        """Remove all checkpoints but the best, the last and the newest of the schedule."""
        names = (path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*"))
        steps = sorted(int(name) for name in names if name.isdecimal())
        newest = [step for step in steps if self.is_scheduled(step)][-self.keep :]
        for step in steps:
            folder = self.step(step)
            if step not in newest and folder.resolve() not in (self.best(), self.last()):
                remove_folder(folder)


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
