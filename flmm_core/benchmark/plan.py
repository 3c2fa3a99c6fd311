"""What a benchmark measures, and when an existing folder may be resumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flmm_core.config import ProtocolName
from flmm_core.data.protocols import ImageSamples
from flmm_core.errors import UsageError
from flmm_core.evaluation.benchmark_folder import (
    MethodName,
    read_benchmark,
    read_measurement,
    source_label,
)


class Plan(BaseModel):
    """Everything that decides the scores of a benchmark; a folder belongs to one plan.

    Attributes:
        backbones: A backbone without a head gets one trained. Empty: those of the heads.
        heads: Run folders, head folders or hub ids.
        method_data: Labeled sources that methods without training are fitted on; empty: the
            training data of each head.
        abstain: Answer "not there" below the threshold that each head's training chose.
        limit: Maximum number of samples per source.
        prompt: The user's text beside the image; None: as each head was trained. So for `system`.
        training: Settings of the heads to train, by dotted key.
        config: Text of the YAML file that these settings override, or empty.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    backbones: tuple[str, ...] = ()
    heads: tuple[str, ...] = ()
    data: tuple[str, ...] = ("shapes@test",)
    protocol: ProtocolName = "standard"
    methods: tuple[MethodName, ...] = ("head",)
    method_data: tuple[str, ...] = ()
    abstain: bool = False
    limit: int | None = None
    prompt: str | None = None
    system: str | None = None
    batch_size: int = 16
    training: dict[str, Any] = {}
    config: str = ""


@dataclass(frozen=True)
class System:
    """A model with its head.

    Attributes:
        label: Unique in a benchmark, for messages and folder names.
        model: What the backbone is loaded from.
        head: Its folder; None if all methods are without training.
        abstain_below: Answer "not there" below this probability; None: never.
    """

    label: str
    backbone: str
    model: str
    head: Path | None = None
    head_sha256: str | None = None
    abstain_below: float | None = None


@dataclass(frozen=True)
class Job:
    """A measurement to make: one method with one system on one source."""

    folder: Path
    system: System
    method: MethodName
    source: str
    samples: ImageSamples
    total: int
    """Number of samples to measure."""

    @property
    def title(self) -> str:
        method = "" if self.method == "head" else f" by {self.method}"
        return f"{self.system.label}{method} on {source_label(self.source)}"


def with_labels(systems: Sequence[System]) -> Iterator[System]:
    """Label systems by backbone, and by model if a backbone has several.

    Raises UsageError if two heads belong to the same model.
    """
    for system in systems:
        same = [other for other in systems if other.backbone == system.backbone]
        heads = [str(other.head) for other in same if other.model == system.model]
        if len(heads) > 1:
            raise UsageError(
                f"Two heads are for {system.backbone}, model {system.model}.",
                found=", ".join(heads) + ".",
                repair="Benchmark them in two folders, and compare the folders with "
                "`flmm report compare`.",
            )
        model = f"-{Path(system.model).name}" if len(same) > 1 else ""
        yield replace(system, label=f"{system.backbone}{model}")


def check_plan(plan: Plan, folder: Path) -> None:
    """`UsageError` if a folder holds a benchmark with another plan."""
    # Settings that an older version did not record had today's defaults.
    recorded = Plan().model_dump(mode="json")
    recorded |= (read_benchmark(folder).model_extra or {}).get("plan") or {}
    asked = f"The folder '{folder}' holds another benchmark."
    repair = "Give another --output, or the command that started this benchmark."
    _check_same(recorded, plan.model_dump(mode="json"), asked, repair)


def check_measurement(folder: Path, file: str, facts: Mapping[str, Any]) -> None:
    """`UsageError` if a file of a measurement records other facts: its rows must not be mixed."""
    recorded = read_measurement(folder, file).model_dump(mode="json")
    asked = f"The measurement in '{folder}' is of another model or other settings."
    _check_same(recorded, facts, asked, f"Delete {folder} to repeat it, or give another --output.")


def _check_same(
    recorded: Mapping[str, Any], given: Mapping[str, Any], asked: str, repair: str
) -> None:
    changed = [
        f"{name}: {recorded.get(name)} there, {value} here"
        for name, value in given.items()
        if recorded.get(name) != value
    ]
    if changed:
        raise UsageError(asked, found=f"{'; '.join(changed)}.", repair=repair)
