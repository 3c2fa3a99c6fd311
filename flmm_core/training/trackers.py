"""Sends what `metrics.jsonl` has to TensorBoard, W&B, Trackio or MLflow, through Accelerate.

What each tracker got last is in `trackers.json` of the run folder: a resumed run goes on in the
same tracker's run, and no step is sent twice. `metrics.jsonl` is the truth: a tracker that fails is
dropped after a warning, and the training goes on.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
from PIL import Image

from flmm_core.config.resolve import flat
from flmm_core.errors import MissingExtraError
from flmm_core.files import write_json

STATE = "trackers.json"
PROJECT = "flmm"
MOST = 200
"""Characters of the name of a figure; MLflow allows 250."""

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """Where a row stands in a run: at a step, training, then validation, then final scores."""

    step: int
    part: int = 0

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> Place:
        """Of a row of `metrics.jsonl`."""
        return cls(row["step"], int("validation" in row))


def check_trackers(names: Iterable[str]) -> None:
    """MissingExtraError if the package of a tracker is not installed."""
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise MissingExtraError(
            f"--log-with {','.join(names)} needs {' and '.join(missing)}.",
            found="Not installed.",
            repair=f"Run `pip install {' '.join(missing)}`, or omit --log-with: `metrics.jsonl` of"
            " the run folder has the same figures.",
        )


class Trackers:
    """The trackers of a run, which never stop it; without names there is nothing to do."""

    def __init__(self, folder: Path, names: Sequence[str], settings: Mapping[str, Any]) -> None:
        self.folder = folder
        self.settings = settings
        self.state: dict[str, Any] = {}
        self._open: dict[str, Any] = {}
        if not names:
            return
        self.state = _read_state(folder)
        for name in names:
            with self._tolerant(name):
                self._open[name] = self._start(name)

    def catch_up(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Send the rows of an earlier part of the run that a tracker does not have."""
        for row in rows if self._open else ():
            self.send(row)

    def send(self, row: Mapping[str, Any]) -> None:
        """Send a row of `metrics.jsonl` to those that do not have it."""
        place = Place.of(row)
        figures = {key: value for key, value in row.items() if key not in ("step", "validation")}
        kind = "train"
        if "validation" in row:
            kind, figures = "validation", row["validation"]
        self._send(place, named_figures(kind, figures))

    def finish(self, step: int, scores: Mapping[str, Any], sheets: Path) -> None:
        """Send the final scores, by data source, and the contact sheets of a folder."""
        pictures = sorted(sheets.glob("*.png"))

        def show(tracker: Any) -> None:
            if hasattr(tracker, "log_artifacts") and pictures:
                tracker.log_artifacts(str(sheets), sheets.name)
            for path in pictures if hasattr(tracker, "log_images") else ():
                with Image.open(path) as image:
                    pixels = np.asarray(image.convert("RGB"))[None]  # (1, H, W, 3)
                more = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({f"sheets/{path.stem}": pixels}, step=step, **more)

        self._send(Place(step, 2), named_figures("test", scores), show)

    def close(self) -> None:
        """Let them write what they still hold."""
        for name, tracker in list(self._open.items()):
            with self._tolerant(name):
                tracker.finish()
        self._open.clear()

    def _send(
        self,
        place: Place,
        figures: Mapping[str, float],
        then: Callable[[Any], None] = lambda tracker: None,
    ) -> None:
        for name, tracker in list(self._open.items()):
            if Place(*self.state[name]["sent"]) >= place:
                continue
            before = self.state[name]["sent"]
            with self._tolerant(name):
                # First: what is killed in between is missing there, but nothing is there twice.
                self._note(name, place)
                try:
                    tracker.log(dict(figures), step=place.step)
                    then(tracker)
                except Exception:
                    self._note(name, before)
                    raise

    def _note(self, name: str, sent: Sequence[int]) -> None:
        self.state[name]["sent"] = sent
        write_json(self.folder / STATE, self.state)

    def _start(self, name: str) -> Any:
        from accelerate import PartialState, tracking

        PartialState(cpu=True)  # what they log through insists on it; one of several stays
        known = self.state.get(name)
        is_new = known is None
        if known is None:
            known = {"id": uuid4().hex[:8], "sent": Place(0)}
        title, tracker = self.folder.resolve().name, None
        if name == "tensorboard":
            tracker = tracking.TensorBoardTracker(name, self.folder)
        elif name == "wandb":
            same = {"id": known["id"], "resume": "allow"}
            tracker = tracking.WandBTracker(PROJECT, name=title, dir=str(self.folder), **same)
        elif name == "trackio":
            unique = f"{title}-{known['id']}"
            tracker = tracking.TrackioTracker(PROJECT, name=unique, resume="allow")
        else:
            # Its own patience with a server that is not there is minutes, for every row.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
            again = None if is_new else known["id"]
            tracker = tracking.MLflowTracker(PROJECT, run_id=again, run_name=title)
        tracker.start()
        if name == "mlflow":
            known["id"] = tracker.tracker.info.run_id
        self.state[name] = known
        write_json(self.folder / STATE, self.state)
        if is_new:
            tracker.store_init_configuration(dict(self.settings))
        return tracker

    @contextmanager
    def _tolerant(self, name: str) -> Iterator[None]:
        """Give a tracker up that fails, after a warning."""
        try:
            yield
        except Exception as error:
            self._open.pop(name, None)
            reason = next(iter(str(error).splitlines()), "") or type(error).__name__
            _log.warning(
                "%s fails (%s). The run goes on without it; `metrics.jsonl` has everything, and"
                " --resume sends what is missing there.",
                name,
                reason,
            )


def named_figures(kind: str, found: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a nested dict as "kind/key/key", in the characters that all trackers take."""
    return {
        re.sub(r"[^\w./ -]", "_", f"{kind}/{key}")[:MOST]: float(value)
        for key, value in _leaves(found)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _leaves(found: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in found.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        else:
            yield f"{prefix}{key}", value


def plain_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings by dotted key in the types that all trackers take."""
    return {
        key: value if isinstance(value, bool | int | float | str) else json.dumps(value)
        for key, value in flat(values)
    }


def _read_state(folder: Path) -> dict[str, Any]:
    """What the trackers have; nothing if that is unknown."""
    try:
        state = json.loads((folder / STATE).read_bytes())
        return {name: one for name, one in state.items() if one["id"] and Place(*one["sent"])}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
