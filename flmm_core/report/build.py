"""Writes the report of a benchmark: one page and the same table in every form."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from flmm_core.data.formats.shared.writing import write_whole
from flmm_core.report.cells import load_benchmark
from flmm_core.report.formats import FORMATS
from flmm_core.report.page import render_page
from flmm_core.report.table import Report, make_report

FORMS = ("html", *FORMATS)
PAGE = "report.html"


def build_report(
    folder: Path, page: Path | None = None, *, forms: Sequence[str] = FORMS, examples: int = 4
) -> tuple[Report, list[Path]]:
    """Score a benchmark and write what `forms` ask for.

    Args:
        folder: The benchmark.
        page: The HTML file, by default `report.html` in the folder; the tables lie beside it.
        forms: From `FORMS`.
        examples: Best and worst phrases that the page shows of each cell.

    Returns:
        The report, and the files that were written, each whole or not at all.

    Raises:
        DataError: A file of the benchmark is missing or broken, or no cell is finished.
    """
    page = page or folder / PAGE
    report = make_report(load_benchmark(folder))
    written = []
    for form in dict.fromkeys(forms):
        if form == "html":
            path, text = page, render_page(report, examples=examples)
        else:
            ending, write = FORMATS[form]
            path, text = page.with_suffix(ending), write(report)
        write_whole(path, text.encode())
        written.append(path)
    return report, written
