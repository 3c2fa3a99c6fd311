"""The rows of an unfinished measurement: one file per process, resumable after any stop.

    cells/NAME/rows-RANK-of-N.jsonl     one line per sample: its rows, or why it has none

Each batch is flushed, so a killed process leaves whole lines and at most one that is cut off.
Lines hold the index of their sample: it does not matter how many processes wrote them, or in how
many runs. Memory: 16 bytes per sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, BinaryIO, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flmm_core.errors import DataError, first_problem
from flmm_core.evaluation.evaluate import MeasuredSample
from flmm_core.evaluation.phrase_rows import PhraseRow

PATTERN = "rows-*-of-*.jsonl"


class SampleRows(BaseModel):
    """One line: the rows of a sample, or why it was skipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: Annotated[int, Field(ge=0)]
    """Its index in the source."""
    rows: tuple[PhraseRow, ...] = ()
    skipped: str | None = None
    """Why it cannot be scored; null if it was."""

    @classmethod
    def of(cls, measured: MeasuredSample) -> Self:
        skipped = " ".join(str(measured.error).splitlines()) if measured.error else None
        return cls(sample=measured.index, rows=measured.rows, skipped=skipped)

    def to_line(self) -> bytes:
        return self.model_dump_json().encode() + b"\n"


class RowFiles:
    """What the row files of one measurement hold now; a last line that is cut off does not count.

    Attributes:
        total: Number of samples of the measurement.
        skipped: Why samples without rows were skipped, by index. They are tried again when the
            measurement is resumed.

    Raises:
        DataError: A whole line is not of this measurement.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder = folder
        self.total = total
        self._lengths: dict[Path, int] = {}  # without a last line that is cut off
        self._places = np.full((total, 2), -1, dtype=np.int64)  # file and offset of each sample
        skipped: dict[int, str] = {}
        for number, path in enumerate(sorted(self.folder.glob(PATTERN))):
            offset = 0
            with path.open("rb") as file:
                for line_number, line in enumerate(file, start=1):
                    if not line.endswith(b"\n"):
                        break
                    found = self._parse(line, path, line_number)
                    if found.skipped is not None:
                        skipped[found.sample] = found.skipped
                    elif not self.has(found.sample):
                        self._places[found.sample] = number, offset
                    offset += len(line)
            self._lengths[path] = offset
        self.skipped = {k: skipped[k] for k in sorted(skipped) if not self.has(k)}

    @property
    def done(self) -> int:
        """Number of samples with rows."""
        return int(np.count_nonzero(self._places[:, 0] >= 0))

    def has(self, sample: int) -> bool:
        return bool(self._places[sample, 0] >= 0)

    def missing(self, batches: Sequence[list[int]]) -> list[list[int]]:
        """The batches that lack a sample, unchanged: rows can depend on what shares a batch."""
        return [batch for batch in batches if not all(self.has(sample) for sample in batch)]

    def open(self, rank: int, processes: int) -> BinaryIO:
        """The file of one process, to append to, without a last line that was cut off."""
        path = self.folder / f"rows-{rank}-of-{processes}.jsonl"
        file = path.open("ab")
        file.truncate(self._lengths.get(path, 0))
        return file

    def in_order(self) -> Iterator[SampleRows]:
        """The samples with rows, in the order of the source."""
        with ExitStack() as stack:
            files = [stack.enter_context(path.open("rb")) for path in self._lengths]
            for number, offset in self._places[self._places[:, 0] >= 0]:
                files[number].seek(offset)
                yield SampleRows.model_validate_json(files[number].readline())

    def remove(self) -> None:
        for path in self.folder.glob(PATTERN):
            path.unlink()

    def _parse(self, line: bytes, path: Path, number: int) -> SampleRows:
        try:
            found = SampleRows.model_validate_json(line)
            if found.sample >= self.total:
                raise ValueError(f"sample {found.sample} of {self.total}")
        except ValueError as error:
            problem = first_problem(error) if isinstance(error, ValidationError) else str(error)
            raise DataError(
                f"Line {number} of {path} is not a sample of this measurement.",
                found=f"{problem}.",
                repair=f"Delete {self.folder}, and run the same command again.",
            ) from error
        return found
