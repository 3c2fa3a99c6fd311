"""One row per phrase (`items.jsonl`), from which all scores are computed. No torch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flmm_core.errors import DataError, first_problem
from flmm_core.files import open_whole

ITEMS = "items.jsonl"

Pixels = Annotated[int, Field(ge=0)]
Side = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Rle(BaseModel):
    """A mask as COCO's compressed run-length code, its counts as text."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    size: tuple[int, int]
    """[H, W] in pixels."""
    counts: str


class PhraseRow(BaseModel):
    """The prediction for one phrase, compared with the truth.

    All counts are pixels at the image's size, outside the regions that a data set ignores.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    item: str = Field(min_length=1)
    """Unique in its file; the same in every file of the same source and protocol."""
    picture: str = Field(min_length=1)
    """File name of the image, relative to `MeasurementFacts.pictures`."""
    phrase: str
    slice: str = ""
    """The part of the data set, "" for none."""
    tags: tuple[str, ...] = ()
    """Further subsets ("plural", "stuff")."""
    size: tuple[Side, Side]
    """[H, W] of the image."""
    as_stored: bool = False
    """Whether the image is shown as it is stored, whatever its EXIF data say."""
    segmentation: Rle
    """The predicted mask."""
    truth_segmentation: Rle | None = None
    """The true mask, to show rows without the data set."""
    intersection: Pixels
    union: Pixels
    predicted: Pixels
    truth: Pixels
    """0: the phrase has no target in the image."""
    ignored: Pixels = 0
    """Pixels that the data set ignores, excluded from all counts."""
    coarse_intersection: Pixels | None = None
    """Of the mask before the refiner; null for a method without one."""
    coarse_union: Pixels | None = None
    score: float
    """The method's own, in any unit; higher is more certain."""
    probability: Fraction | None = None
    """Calibrated probability that the mask is right (IoU >= 0.5)."""
    there: bool = True
    """False: answered "not there" because of a low probability; the mask is empty."""
    box_iou: Fraction | None = None
    """IoU of the masks' tight boxes; null without target."""
    point_in_mask: bool | None = None
    """Whether the pixel of the highest logit is in the true mask; null without target."""
    distractors: Pixels | None = None
    """Other objects of its category in the image; null if unknown."""
    seconds: float = Field(ge=0)
    """Wall-clock inference time, this phrase's share of its batch."""

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
        """The row as a line of `items.jsonl`."""
        return self.model_dump_json() + "\n"


def read_rows(path: Path) -> Iterator[PhraseRow]:
    """The rows of an `items.jsonl`, one at a time.

    Raises:
        DataError: With the line of the first problem: a truncated line, a missing or unknown key,
            impossible counts, or a duplicate item.
    """
    first_lines: dict[str, int] = {}
    for number, line in _lines(path):
        row = _row(line, number, path)
        first = first_lines.setdefault(row.item, number)
        if first != number:
            raise DataError(
                f"The item '{row.item}' occurs twice in {path}.",
                found=f"On lines {first} and {number}.",
                repair="Remove one of them, or repeat the measurement.",
            )
        yield row


def read_some_rows(path: Path, places: Iterable[int]) -> dict[int, PhraseRow]:
    """Rows by their index in the file; the others are not parsed."""
    wanted = {place + 1 for place in places}
    return {n - 1: _row(line, n, path) for n, line in _lines(path) if n in wanted}


def write_rows(path: Path, rows: Iterable[PhraseRow]) -> None:
    """Write an `items.jsonl` atomically."""
    with open_whole(path) as file:
        file.writelines(row.to_line().encode() for row in rows)


def unreadable(path: Path, error: OSError) -> DataError:
    """The error for a file of a benchmark that cannot be opened."""
    return DataError(
        f"The file {path} cannot be read.",
        found=f"{error.strerror or error}.",
        repair="Give the folder that `flmm benchmark` wrote.",
    )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with path.open("rb") as file:
            yield from enumerate(file, start=1)
    except OSError as error:
        raise unreadable(path, error) from error


def _row(line: bytes, number: int, path: Path) -> PhraseRow:
    try:
        return PhraseRow.model_validate_json(line)
    except ValidationError as error:
        if error.errors()[0]["type"] == "json_invalid":
            raise DataError(
                f"Line {number} of {path} is not complete JSON.",
                found=f"{first_problem(error)}.",
                repair="The line may be truncated; remove it and repeat the measurement.",
            ) from error
        raise DataError(
            f"Line {number} of {path} is not a row of a benchmark.",
            found=f"{first_problem(error)}.",
            repair="Repeat the measurement; docs/benchmark.md describes a row.",
        ) from error
