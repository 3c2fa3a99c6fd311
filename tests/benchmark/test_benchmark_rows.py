"""The rows of an unfinished measurement: files of several processes, cut off or broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.benchmark.rows import RowFiles, SampleRows
from flmm_core.errors import DataError


def test_row_files_of_any_number_of_processes_are_read_together(tmp_path: Path) -> None:
    lines = {n: SampleRows(sample=n).to_line() for n in range(6)}
    skip = SampleRows(sample=5, skipped="no image").to_line()
    (tmp_path / "rows-0-of-2.jsonl").write_bytes(lines[4] + lines[0] + skip)
    (tmp_path / "rows-1-of-2.jsonl").write_bytes(lines[3] + lines[1][:9])
    (tmp_path / "rows-2-of-3.jsonl").write_bytes(lines[2][:-1])
    rows = RowFiles(tmp_path, 6)
    assert (rows.done, rows.skipped) == (3, {5: "no image"})
    assert [row.sample for row in rows.in_order()] == [0, 3, 4]
    assert rows.missing([[0], [1, 2], [3, 4], [5]]) == [[1, 2], [5]]
    with rows.open(2, 3) as cut_off, rows.open(0, 2) as whole, rows.open(0, 1) as new:
        cut_off.write(lines[2])
        whole.write(lines[0])
        new.write(lines[5])
    assert (tmp_path / "rows-2-of-3.jsonl").read_bytes() == lines[2]
    assert (tmp_path / "rows-0-of-2.jsonl").read_bytes() == lines[4] + lines[0] + skip + lines[0]
    rows = RowFiles(tmp_path, 6)
    assert (rows.done, rows.skipped) == (5, {})
    rows.remove()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"sample":7,"rows":[],"skipped":null}\n', "sample 7 of 3."),
        (b'{"sample":1,"rows":[{}],"skipped":null}\n', "rows.0.item: Field required."),
        (b"{]\n", "Invalid JSON: "),
    ],
)
def test_a_broken_line_within_is_named(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "rows-0-of-1.jsonl"
    path.write_bytes(SampleRows(sample=0).to_line() + line)
    with pytest.raises(DataError) as error:
        RowFiles(tmp_path, 3)
    assert error.value.asked == f"Line 2 of {path} is not a sample of this measurement."
    assert error.value.found.startswith(reason)
