"""The rows of a cell while it is measured: a file a process, kept through any stop. No torch.

    cells/NAME/rows-RANK-of-N.jsonl     one line a sample: its rows, or why it has none

A line is written at once and flushed, so a process that is killed leaves whole lines and at most
one that is cut off. Lines carry the place of their sample in the source, so that it does not matter
how many processes wrote them, or in how many goes. Memory: 16 bytes a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flmm_core.errors import DataError
from flmm_core.evaluation.phrase_rows import Item, reason

PATTERN = "rows-*-of-*.jsonl"


class SampleRows(BaseModel):
    """One sample: its phrases, or why it was skipped."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    sample: Annotated[int, Field(ge=0)]
    """Its place in the source."""
    rows: tuple[Item, ...] = ()
    skipped: str | None = None
    """Why it cannot be scored; null if it was."""

    def to_line(self) -> bytes:
        """As it stands in the file, with its line end."""
        return self.model_dump_json().encode() + b"\n"


class RowFiles:
    """The row files of one cell.

    Attributes:
        skipped: The samples that were skipped so far, with the reason; they are tried again when
            a cell goes on, and rows take the place of the reason.

    Args:
        folder: The cell's.
        total: How many samples the cell has.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.folder = folder
        self.total = total
        self.skipped: dict[int, str] = {}
        self._paths: list[Path] = []
        self._file = np.full(total, -1, dtype=np.int64)
        self._offset = np.zeros(total, dtype=np.int64)

    def mend(self) -> None:
        """Cut off the last line of each file where it is not whole; one process does it."""
        for path in self._found():
            with path.open("rb+") as file:
                file.truncate(_whole_length(file))

    def scan(self) -> None:
        """Learn which samples are there.

        Raises:
            DataError: A whole line is no such row, or names a sample that the cell does not have.
        """
        self._paths = self._found()
        self._file[:] = -1
        self.skipped.clear()
        for number, path in enumerate(self._paths):
            with path.open("rb") as file:
                offset = 0
                for line_number, line in enumerate(file, start=1):
                    row = self._parsed(line, path, line_number)
                    if row.skipped is not None:
                        self.skipped[row.sample] = row.skipped
                    elif not self.has(row.sample):
                        self._file[row.sample], self._offset[row.sample] = number, offset
                    offset += len(line)
        self.skipped = {k: why for k, why in sorted(self.skipped.items()) if not self.has(k)}

    @property
    def done(self) -> int:
        """How many samples had rows at the last `scan`."""
        return int(np.count_nonzero(self._file >= 0))

    def has(self, sample: int) -> bool:
        """Whether a sample had rows at the last `scan`."""
        return bool(self._file[sample] >= 0)

    def missing(self, batches: Sequence[list[int]]) -> list[list[int]]:
        """The batches that lack a sample; whole, so that what goes together stays the same."""
        return [batch for batch in batches if not all(self.has(sample) for sample in batch)]

    def path(self, rank: int, processes: int) -> Path:
        """The file of one of several processes."""
        return self.folder / f"rows-{rank}-of-{processes}.jsonl"

    def in_order(self) -> Iterator[SampleRows]:
        """Every sample that had rows at the last `scan`, in the order of the source."""
        files = [path.open("rb") for path in self._paths]
        try:
            for sample in np.flatnonzero(self._file >= 0).tolist():
                file = files[self._file[sample]]
                file.seek(int(self._offset[sample]))
                yield SampleRows.model_validate_json(file.readline())
        finally:
            for file in files:
                file.close()

    def remove(self) -> None:
        """Delete the files."""
        for path in self._found():
            path.unlink()

    def _found(self) -> list[Path]:
        return sorted(self.folder.glob(PATTERN))

    def _parsed(self, line: bytes, path: Path, number: int) -> SampleRows:
        try:
            row = SampleRows.model_validate_json(line)
            if row.sample >= self.total:
                raise ValueError(f"sample {row.sample} of {self.total}")
        except ValueError as error:
            found = reason(error) if isinstance(error, ValidationError) else str(error)
            raise DataError(
                f"Line {number} of {path} is not a sample of this cell.",
                found=f"{found}.",
                repair=f"Delete {self.folder}, and run the same command again.",
            ) from error
        return row


def _whole_length(file: BinaryIO) -> int:
    """Bytes up to the end of the last whole line."""
    end = file.seek(0, 2)
    while end:
        start = max(0, end - (1 << 16))
        file.seek(start)
        place = file.read(end - start).rfind(b"\n")
        if place >= 0:
            return start + place + 1
        end = start
    return 0
