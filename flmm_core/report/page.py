"""Writes the report of a benchmark: one self-contained HTML file, and its table beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from flmm_core import __version__, files
from flmm_core.evaluation.scores import SCORES, titles
from flmm_core.report import charts, formats
from flmm_core.report.gallery import best_and_worst
from flmm_core.report.measurements import load_benchmark
from flmm_core.report.scores import Slicing
from flmm_core.report.table import BenchmarkReport, ReportRow, interval, make_report, percent
from flmm_core.report.templates import template

GLANCE = ("ciou", "miou", "precision@0.5")
DRAWN = 6
"""Most systems in a chart of slices or calibration; the tables have all."""
Signs = Mapping[str, charts.Sign]


def build_report(
    folder: Path,
    page: Path | None = None,
    *,
    forms: Sequence[str] = ("html", *formats.FORMATS),
    examples: int = 4,
) -> tuple[BenchmarkReport, list[Path]]:
    """Score a benchmark and write its report.

    Args:
        page: The HTML file, by default `report.html` in the folder; tables are written beside it.
        forms: "html" and the names of `FORMATS`.
        examples: Best and worst phrases on the page per measurement.

    Returns:
        The report and the written files, each whole or not at all.

    Raises:
        DataError: A file of the benchmark is missing or broken, or no measurement is finished.
    """
    page = page or folder / "report.html"
    report = make_report(load_benchmark(folder))
    texts = {}
    for form in forms:
        if form == "html":
            texts[page] = render_page(report, examples=examples)
        else:
            ending, write = formats.FORMATS[form]
            texts[page.with_suffix(ending)] = write(report)
    for path, text in texts.items():
        files.write_text(path, text)
    return report, list(texts)


def render_page(report: BenchmarkReport, *, examples: int = 4) -> str:
    """The whole page, with `examples` best and worst phrases per row; 0: without images.

    Raises:
        DataError: A row of an example is broken.
    """
    signs = _signs(report)
    sources = {
        source: list(rows) for source, rows in groupby(report.rows, key=lambda row: row.source)
    }
    slices = {source: list(_slices(source, rows, signs)) for source, rows in sources.items()}
    return template("page.html.j2").render(
        report=report,
        benchmark=report.benchmark,
        facts=report.benchmark.facts,
        version=__version__,
        name=report.benchmark.folder.resolve().name,
        titles=titles(),
        table=SCORES,
        glance=GLANCE,
        to_best=formats.to_best,
        published_title=formats.published_title,
        protocols=sorted({row.protocol for row in report.rows}),
        by_place={(row.system, row.source): row for row in report.rows},
        signs=signs,
        groups=[
            list(rows)
            for _, rows in groupby(report.rows, key=lambda row: (row.source, row.protocol))
        ],
        scatters=[
            chart for source, rows in sources.items() for chart in _scatter(source, rows, signs)
        ],
        slices={source: found for source, found in slices.items() if found},
        calibrations=[
            chart for source, rows in sources.items() for chart in _calibration(source, rows, signs)
        ],
        galleries=[
            (row, *best_and_worst(row.measurement, examples)) for row in report.rows if examples
        ],
    )


def _scatter(source: str, rows: list[ReportRow], signs: Signs) -> Iterator[charts.Chart]:
    marks = [
        charts.Mark(signs[row.system], row.system, row.scores["ciou"], seconds)
        for row in rows
        if (seconds := row.measurement.seconds_per_phrase) and row.scores.phrases
    ]
    if marks:
        yield charts.Chart(source, charts.scatter(marks, source))


def _slices(source: str, rows: list[ReportRow], signs: Signs) -> Iterator[charts.Chart]:
    drawn, note = _drawn(rows)
    for title in dict.fromkeys(part.title for row in rows for part in row.slicings):
        parts = {row.system: part for row in rows for part in row.slicings if part.title == title}
        shown = [(signs[name], name, parts[name]) for name in drawn if name in parts]
        if shown:
            svg = charts.slices(shown, f"{source}, {title}")
            yield charts.Chart(title, svg, list(_slice_rows(parts)), note)


def _slice_rows(parts: Mapping[str, Slicing]) -> Iterator[tuple[str, ...]]:
    yield "System", "Group", "Phrases", "cIoU", "mIoU", "mIoU, 95 %"
    for system, slicing in parts.items():
        for name, scores in slicing.groups.items():
            figures = percent(scores["ciou"].value), percent(scores["miou"].value)
            yield system, name, str(scores.phrases), *figures, interval(scores["miou"]) or "–"
        if slicing.left_out:
            yield system, "unknown or not shown", str(slicing.left_out), "–", "–", "–"


def _calibration(source: str, rows: list[ReportRow], signs: Signs) -> Iterator[charts.Chart]:
    known = {row.system: row.reliability for row in rows if row.reliability is not None}
    if known:
        drawn, note = _drawn([row for row in rows if row.system in known])
        svg = charts.calibration([(signs[name], name, known[name]) for name in drawn], source)
        figures = [("System", "Calibration error, %", "Phrases")]
        figures += [(name, percent(one.error), str(sum(one.counts))) for name, one in known.items()]
        yield charts.Chart(source, svg, figures, note)


def _drawn(rows: list[ReportRow]) -> tuple[list[str], str]:
    """The systems that a chart has room for, and a note that says so."""
    best = sorted(rows, key=lambda row: -(row.scores["ciou"].value or 0))[:DRAWN]
    names = [row.system for row in rows if row in best]
    if len(names) == len(rows):
        return names, ""
    return names, f"The {DRAWN} systems with the highest cIoU of {len(rows)}; the table has all."


def _signs(report: BenchmarkReport) -> dict[str, charts.Sign]:
    """A color and shape for each backbone's model, a fill for each method and protocol."""
    systems = report.benchmark.systems
    models = list(dict.fromkeys(system[:2] for system in systems))
    ways = sorted({system[2:] for system in systems}, key=lambda way: (way[0] != "head", way))
    return {
        label: charts.Sign(models.index(system[:2]), ways.index(system[2:]))
        for system, label in systems.items()
    }
