"""What a benchmark measures, and what a folder that is begun may go on with. No torch."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flmm_core.data.protocols import ImageSamples, Protocol
from flmm_core.errors import DataError, UsageError
from flmm_core.evaluation.phrase_rows import CellFacts, Method, read_benchmark, source_label

HEAD_WEIGHTS = "model.safetensors"
BEGUN = "begun.json"


class Plan(BaseModel):
    """What decides a benchmark's figures; a folder belongs to one plan.

    Attributes:
        backbones: By name; those without a head get one. Empty: those of the heads.
        heads: Run folders, head folders or hub ids.
        data: Sources as `--data` takes them.
        protocol: Of all figures.
        methods: What makes the masks.
        method_data: Labelled sources of which methods without training see a few samples; empty:
            what the head was trained on.
        abstain: Answer "not there" below the threshold that each head's training chose.
        limit: Only the first so many samples of each source.
        batch_size: Samples that go through the flow together.
        training: Settings of the heads that are trained, by dotted key.
        config: Text of the YAML file that these settings override, or empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbones: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    data: tuple[str, ...] = ("shapes@test",)
    protocol: Protocol = "standard"
    methods: tuple[Method, ...] = ("head",)
    method_data: tuple[str, ...] = ()
    abstain: bool = False
    limit: int | None = None
    batch_size: int = 16
    training: dict[str, Any] = {}
    config: str = ""


@dataclass(frozen=True)
class System:
    """One model to be measured.

    Attributes:
        label: Unique, for people and folders.
        backbone: The plugin's name.
        model: What it is loaded from.
        head: The head's folder, None where only methods without training are measured.
        head_sha256: Of its weights.
        abstain_below: The probability below which to answer "not there"; None: never.
    """

    label: str
    backbone: str
    model: str
    head: Path | None
    head_sha256: str | None
    abstain_below: float | None = None


@dataclass(frozen=True)
class Cell:
    """One system and method on one source."""

    folder: Path
    system: System
    method: Method
    source: str
    samples: ImageSamples
    total: int

    @property
    def title(self) -> str:
        made_by = "" if self.method == "head" else f" by {self.method}"
        return f"{self.system.label}{made_by} on {source_label(self.source)}"


def labelled_systems(found: Sequence[tuple[str, str, Path | None]]) -> Iterator[System]:
    """Names that tell systems apart: the backbone, with the model where it has several."""
    for backbone, model, folder in found:
        same = [other for other in found if other[0] == backbone]
        if [other[1] for other in same].count(model) > 1:
            raise UsageError(
                f"Two heads are for {backbone}, model {model}.",
                found=", ".join(str(other[2]) for other in same) + ".",
                repair="Measure them in two benchmarks, and compare these with "
                "`flmm report compare`.",
            )
        label = f"{backbone}-{Path(model).name}" if len(same) > 1 else backbone
        digest = None
        if folder is not None:
            digest = hashlib.sha256((folder / HEAD_WEIGHTS).read_bytes()).hexdigest()
        yield System(label, backbone, model, folder, digest)


def check_plan(plan: Plan, output: Path) -> None:
    """UsageError if the folder was begun with another plan."""
    # What an older flmm did not write down is as it is by default.
    kept = Plan().model_dump(mode="json")
    kept |= (read_benchmark(output).model_extra or {}).get("plan") or {}
    ours = plan.model_dump(mode="json")
    different = [name for name in ours if ours[name] != kept.get(name)]
    if different:
        raise UsageError(
            f"The folder '{output}' holds another benchmark.",
            found="; ".join(f"{n}: {kept.get(n)} there, {ours[n]} here" for n in different) + ".",
            repair="Give another --output, or the command that this one was begun with.",
        )


def check_begun(path: Path, facts: CellFacts) -> None:
    """UsageError if a cell was begun with something else; its rows must not be mixed."""
    if not path.is_file():
        return
    try:
        begun = CellFacts.model_validate_json(path.read_bytes()).model_dump(mode="json")
    except ValueError as error:
        raise DataError(
            f"The file '{path}' is broken.",
            found=f"{error}",
            repair=f"Delete {path.parent}, and run the same command again.",
        ) from error
    ours = facts.model_dump(mode="json")
    # Rows of one device are as good as those of another.
    different = [n for n in ours if n not in ("device", "pictures") and begun.get(n) != ours[n]]
    if different:
        raise UsageError(
            f"The cell '{path.parent}' was begun with something else.",
            found="; ".join(f"{n}: {begun.get(n)} there, {ours[n]} here" for n in different) + ".",
            repair=f"Delete {path.parent} to measure it anew, or give another --output.",
        )


def check_head(measured: str | None, cell: Cell) -> None:
    """UsageError if a finished cell is of another head."""
    if cell.method == "head" and measured != cell.system.head_sha256:
        raise UsageError(
            f"The cell '{cell.folder}' was measured with another head.",
            found=f"SHA-256 {measured} there, {cell.system.head_sha256} here.",
            repair=f"Delete {cell.folder} to measure it anew, or give another --output.",
        )


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep others out of a folder, until this process ends in whatever way.

    Raises:
        UsageError: Another process is in it: perhaps one that outlived the `torchrun` above it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if sys.platform == "win32":  # has no such locks
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise UsageError(
            f"Another process is measuring into '{folder}'.",
            repair="Wait for it or stop it, or give another --output.",
        ) from None
    except OSError:  # nor have some network drives
        pass
    try:
        yield
    finally:
        os.close(descriptor)


def file_name(text: str) -> str:
    """A text as a file's name."""
    return re.sub(r"[^\w.@+-]+", "_", text)
