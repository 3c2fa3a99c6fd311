"""The folder that `flmm benchmark` writes and `flmm report` reads. No torch.

    DIR/benchmark.json              what was run (`BenchmarkFacts`)
    DIR/cells/NAME/items.jsonl      the rows of one measurement (`PhraseRow`), in any order
    DIR/cells/NAME/result.json      what produced them (`MeasurementFacts`), written last

A measurement is one method with one model on one data source; it is finished when `result.json`
exists. NAME (BACKBONE--SOURCE[--METHOD]) is only for people.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from flmm_core.data.sources import parse_source
from flmm_core.errors import DataError, UsageError, first_problem
from flmm_core.evaluation.phrase_rows import unreadable
from flmm_core.files import write_text

BENCHMARK, MEASUREMENTS, RESULT = "benchmark.json", "cells", "result.json"

MethodName = Literal["head", "attention-mean", "top-k-heads", "box+sam"]
Facts = TypeVar("Facts", "BenchmarkFacts", "MeasurementFacts")


class MeasurementFacts(BaseModel):
    """What produced the rows of one measurement; further keys are kept and shown."""

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    format: Literal[1] = 1
    backbone: str
    model: str
    """What the backbone was loaded from: an alias, a hub id or a folder."""
    revision: str | None = None
    weights_sha256: str | None = None
    head: str | None = None
    """The head's folder; null for a method without one."""
    head_sha256: str | None = None
    method: MethodName = "head"
    source: str
    """NAME[:PATH][@SPLIT], as `--data` takes it."""
    pictures: str | None = None
    """The folder that the rows' `picture` is relative to."""
    protocol: str
    dtype: str | None = None
    device: str | None = None
    steps: int | None = None
    """Training steps of the head."""
    trainable_parameters: int | None = None
    seconds: float | None = None
    """Inference time, summed over phrases and processes; without reading and scoring."""
    seconds_per_phrase: float | None = None

    @property
    def label(self) -> str:
        """The source without its path: "refcoco@val"."""
        return source_label(self.source)


class BenchmarkFacts(BaseModel):
    """What a benchmark ran on; further keys are kept and shown."""

    model_config = ConfigDict(frozen=True, extra="allow")

    format: Literal[1] = 1
    created: str
    """ISO 8601."""
    command: list[str] | str
    versions: dict[str, str | None] = {}
    machine: str | dict[str, Any] | None = None
    seed: int | None = None
    protocol: str
    prompt: str | None = None


def source_label(source: str) -> str:
    """`NAME[:PATH][@SPLIT]` without its PATH and options; any other text unchanged."""
    try:
        return parse_source(source).label
    except UsageError:
        return source


def read_benchmark(folder: Path) -> BenchmarkFacts:
    """`benchmark.json` of a benchmark; `DataError` if it is missing or broken."""
    return _read_facts(folder / BENCHMARK, BenchmarkFacts)


def read_measurement(folder: Path, file: str = RESULT) -> MeasurementFacts:
    """`result.json` of a measurement, or a `file` like it; `DataError` if missing or broken."""
    return _read_facts(folder / file, MeasurementFacts)


def write_facts(folder: Path, facts: BenchmarkFacts | MeasurementFacts) -> None:
    """Write `benchmark.json` or `result.json`."""
    name = BENCHMARK if isinstance(facts, BenchmarkFacts) else RESULT
    write_text(folder / name, facts.model_dump_json(indent=2) + "\n")


def measurement_folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """The finished and the unfinished measurements of a benchmark, sorted by name."""
    folders = sorted(path for path in (folder / MEASUREMENTS).glob("*") if path.is_dir())
    return (
        [path for path in folders if (path / RESULT).is_file()],
        [path for path in folders if not (path / RESULT).is_file()],
    )


def _read_facts(path: Path, kind: type[Facts]) -> Facts:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise unreadable(path, error) from error
    except ValidationError as error:
        raise DataError(
            f"The file {path} is not of benchmark format 1.",
            found=f"{first_problem(error)}.",
            repair="Repeat the benchmark, or read it with the version of flmm that wrote it.",
        ) from error
