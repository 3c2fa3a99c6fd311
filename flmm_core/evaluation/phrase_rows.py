"""The files of a benchmark: what `flmm benchmark` writes and `flmm report` reads. No torch.

    DIR/benchmark.json              what was run (`BenchmarkFacts`)
    DIR/cells/NAME/items.jsonl      one row a phrase (`Item`)
    DIR/cells/NAME/result.json      what gave these rows (`CellFacts`); written when all are there

NAME is for people, usually BACKBONE--SOURCE, with --METHOD where there are several; what counts
stands in `result.json`. A cell without it is unfinished. Rows may stand in any order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flmm_core.errors import DataError

FORMAT = 1
BENCHMARK, CELLS, RESULT, ITEMS = "benchmark.json", "cells", "result.json", "items.jsonl"

Method = Literal["head", "attention-mean", "top-k-heads", "box+sam"]
Pixels = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Facts = TypeVar("Facts", "BenchmarkFacts", "CellFacts")


class Rle(BaseModel):
    """A mask as COCO's compressed run-length code, its counts as text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: tuple[int, int]
    """[H, W] in pixels."""
    counts: str


class Item(BaseModel):
    """One phrase: what was found and how it compares with the truth.

    All counts are pixels at the image's size, outside regions that a data set says to ignore.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    item: str = Field(min_length=1)
    """Unique in its cell, the same in every cell of the same source and protocol."""
    picture: str = Field(min_length=1)
    """File name, relative to the cell's `pictures`. Phrases of one image share it."""
    phrase: str
    slice: str = ""
    """The part of the data set, "" for none."""
    tags: tuple[str, ...] = ()
    """Any number of further parts ("plural", "stuff")."""
    size: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]]
    """[H, W] of the image."""
    segmentation: Rle
    """The predicted mask."""
    truth_segmentation: Rle | None = None
    """The true mask, if rows are to show it without the data set."""
    intersection: Pixels
    union: Pixels
    predicted: Pixels
    truth: Pixels
    """0: nothing in the image is meant."""
    ignored: Pixels = 0
    """Pixels that the data set says to ignore, taken out of all counts."""
    coarse_intersection: Pixels | None = None
    """Of the mask before the refiner; null for a method without one."""
    coarse_union: Pixels | None = None
    score: float
    """The method's own, in any unit; higher is surer."""
    probability: Fraction | None = None
    """Calibrated: how likely the mask is right (IoU >= 0.5)."""
    there: bool = True
    """False: answered with "not there" for too low a probability, and the mask is empty."""
    box_iou: Fraction | None = None
    """Of the masks' tight boxes; null where there is no true one."""
    point_in_mask: bool | None = None
    """Whether the surest point lies in the true mask; null where there is none."""
    distractors: Pixels | None = None
    """Other objects of its category in the image; null if unknown."""
    seconds: float = Field(ge=0)
    """Wall-clock time in the flow, this phrase's share of a batch."""

    @model_validator(mode="after")
    def _sizes_and_counts_fit(self) -> Self:
        for name in ("segmentation", "truth_segmentation"):
            mask = getattr(self, name)
            if mask is not None and mask.size != self.size:
                raise ValueError(f"{name} has the size {mask.size}, the image {self.size}")
        if (self.coarse_intersection is None) != (self.coarse_union is None):
            raise ValueError("coarse_intersection and coarse_union come together")
        if self.intersection > min(self.union, self.predicted, self.truth):
            raise ValueError(
                f"an intersection of {self.intersection} with union {self.union}, "
                f"predicted {self.predicted}, truth {self.truth}"
            )
        if self.union > self.predicted + self.truth:
            raise ValueError(
                f"a union of {self.union} of predicted {self.predicted} and truth {self.truth}"
            )
        if (self.coarse_intersection or 0) > (self.coarse_union or 0):
            raise ValueError(
                f"a coarse intersection of {self.coarse_intersection} in a union of "
                f"{self.coarse_union}"
            )
        return self

    def to_line(self) -> str:
        """The row as it stands in `items.jsonl`, with its line end."""
        return self.model_dump_json() + "\n"


class CellFacts(BaseModel):
    """Where the rows of one cell come from; further keys are kept and shown."""

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
    method: Method = "head"
    source: str
    """NAME[:PATH][@SPLIT], as `--data` takes it."""
    pictures: str | None = None
    """The folder that the rows' `picture` is relative to."""
    protocol: str
    dtype: str | None = None
    device: str | None = None
    steps: int | None = None
    """Of the head's training."""
    trainable_parameters: int | None = None
    seconds: float | None = None
    """Of all phrases in the flow, summed over processes; reading and scoring are not in it."""
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
    """`NAME[:PATH][@SPLIT]` without its PATH; a text of any other form as it is."""
    parts = re.fullmatch(r"([^:@]+)(?::.*?)?(?:@([^@/\\]+))?", source, re.DOTALL)
    if parts is None:
        return source
    return f"{parts[1]}@{parts[2]}" if parts[2] else parts[1]


def read_benchmark(folder: Path) -> BenchmarkFacts:
    """`DIR/benchmark.json`.

    Raises:
        DataError: It is missing or broken.
    """
    return _read_facts(folder / BENCHMARK, BenchmarkFacts)


def read_cell(folder: Path) -> CellFacts:
    """`result.json` of a cell's folder.

    Raises:
        DataError: It is missing or broken.
    """
    return _read_facts(folder / RESULT, CellFacts)


def cell_folders(folder: Path) -> tuple[list[Path], list[Path]]:
    """The finished and the unfinished cells of a benchmark folder, by name."""
    folders = sorted(path for path in (folder / CELLS).glob("*") if path.is_dir())
    return (
        [path for path in folders if (path / RESULT).is_file()],
        [path for path in folders if not (path / RESULT).is_file()],
    )


def read_items(path: Path) -> Iterator[Item]:
    """The rows of an `items.jsonl`, one at a time.

    Raises:
        DataError: Names the file and the line (1-based) of the first fault: a line that is not
            whole, a missing or unknown key, counts that cannot be, an item that comes twice.
    """
    first_lines: dict[str, int] = {}
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                item = _item(line, number, path)
                first = first_lines.setdefault(item.item, number)
                if first != number:
                    raise DataError(
                        f"The item '{item.item}' stands twice in {path}.",
                        found=f"On lines {first} and {number}.",
                        repair="Remove one of them, or run the cell again.",
                    )
                yield item
    except OSError as error:
        raise _unreadable(path, error) from error


def read_some_items(path: Path, places: Iterable[int]) -> dict[int, Item]:
    """Rows by their place (0-based) in the file; the others are not parsed."""
    wanted = set(places)
    try:
        with path.open("rb") as file:
            return {
                place: _item(line, place + 1, path)
                for place, line in enumerate(file)
                if place in wanted
            }
    except OSError as error:
        raise _unreadable(path, error) from error


def write_facts(folder: Path, facts: BenchmarkFacts | CellFacts) -> None:
    """Write `benchmark.json` or `result.json` into a folder, whole or not at all."""
    name = BENCHMARK if isinstance(facts, BenchmarkFacts) else RESULT
    _write_whole(folder / name, [facts.model_dump_json(indent=2), "\n"])


def write_items(folder: Path, items: Iterable[Item]) -> None:
    """Write all rows of a cell's `items.jsonl`, whole or not at all."""
    _write_whole(folder / ITEMS, (item.to_line() for item in items))


def _item(line: bytes, number: int, path: Path) -> Item:
    try:
        return Item.model_validate_json(line)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise DataError(
                f"Line {number} of {path} is not whole JSON.",
                found=f"{reason(error)}.",
                repair="The line may be cut off; remove it and run the cell again.",
            ) from error
        raise DataError(
            f"Line {number} of {path} is not a row of a benchmark.",
            found=f"{reason(error)}.",
            repair="Run the cell again; docs/report.md describes a row.",
        ) from error


def _read_facts(path: Path, kind: type[Facts]) -> Facts:
    try:
        return kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise _unreadable(path, error) from error
    except ValidationError as error:
        raise DataError(
            f"The file {path} is not of benchmark format {FORMAT}.",
            found=f"{reason(error)}.",
            repair="Run the benchmark again, or read it with the flmm that wrote it.",
        ) from error


def _unreadable(path: Path, error: OSError) -> DataError:
    return DataError(
        f"The file {path} cannot be read.",
        found=f"{error.strerror or error}.",
        repair="Give the folder that `flmm benchmark` wrote.",
    )


def reason(error: ValidationError) -> str:
    """The first problem in one line: where, and what."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else str(problem["msg"])


def _write_whole(path: Path, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(parts)
    partial.replace(path)
