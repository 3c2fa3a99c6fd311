"""One HTML file that shows a benchmark, without anything from outside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jinja2
from markupsafe import Markup

from flmm_core import __version__
from flmm_core.report import charts, formats
from flmm_core.report.gallery import Example, best_and_worst
from flmm_core.report.scores import TITLES, Score
from flmm_core.report.slices import Slicing
from flmm_core.report.table import Report, Row, interval, percent, said_p, signed

GLANCE = ("ciou", "miou", "precision@0.5")
DRAWN = 6
"""Systems that a chart of slices or calibration shows; the tables have all."""


@dataclass(frozen=True)
class Chart:
    """A chart with its heading; `rows` are its figures as a table, if they stand nowhere else."""

    title: str
    svg: Markup
    heading: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Charts:
    """The charts of one source."""

    source: str
    charts: tuple[Chart, ...]
    note: str = ""


@dataclass(frozen=True)
class Gallery:
    """The best and the worst phrases of one cell."""

    row: Row
    best: tuple[Example, ...]
    worst: tuple[Example, ...]


def render_page(report: Report, *, examples: int = 4) -> str:
    """The whole page.

    Args:
        report: What it shows.
        examples: Best and worst phrases of each cell; 0 for a page without images.

    Raises:
        DataError: A row that is to be shown is broken.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("flmm_core", "report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": percent,
        "interval": interval,
        "seconds": formats.seconds,
        "signed": signed,
        "said_p": said_p,
        "fact": _fact,
    }
    series = _signs(report)
    return environment.get_template("page.html.j2").render(
        report=report,
        benchmark=report.benchmark,
        facts=report.benchmark.facts,
        version=__version__,
        name=report.benchmark.folder.resolve().name,
        titles=TITLES,
        glance=GLANCE,
        to_best=formats.to_best,
        published_title=formats.published_title,
        by_protocol=len({row.protocol for row in report.rows}) > 1,
        protocols=sorted({row.protocol for row in report.rows}),
        by_place={(row.system, row.source): row for row in report.rows},
        series=series,
        legend={label: _small(sign) for label, sign in series.items()},
        findings=list(_findings(report)),
        bars=list(_bars(report, series)),
        scatters=list(_scatters(report, series)),
        slices=list(_slices(report, series)),
        calibrations=list(_calibrations(report, series)),
        galleries=[Gallery(row, *best_and_worst(row.cell, examples)) for row in report.rows]
        if examples
        else [],
    )


def _findings(report: Report) -> Iterator[Markup]:
    """One sentence a source and protocol: who is ahead, by how much, and whether it is chance."""
    for group in _by_source(report, by_protocol=True):
        best = next(row for row in group if row.is_best)
        where = Markup("<b>{}</b> ({})").format(best.source, best.protocol)
        if best.scores["ciou"].value is None:
            yield Markup("{}: no phrases.").format(where)
            continue
        figure = f"cIoU\xa0{_with_interval(best.scores['ciou'])}"
        behind = [(row.behind.difference, row) for row in group if row.behind is not None]
        if not behind:
            yield Markup("{}: <b>{}</b> reaches {}.").format(where, best.system, figure)
            continue
        difference, second = max(behind, key=lambda pair: pair[0])
        assert second.behind is not None
        verdict = "" if second.behind.p < 0.05 else ", which may be chance"
        yield Markup("{}: <b>{}</b> is ahead with {}. Next is {}, {} points ({}){}.").format(
            where,
            best.system,
            figure,
            second.system,
            signed(difference),
            said_p(second.behind.p).replace(" ", "\xa0"),
            verdict,
        )


def _bars(report: Report, series: Mapping[str, charts.Sign]) -> Iterator[Chart]:
    for rows in _by_source(report):
        entries = [charts.Bar(series[row.system], row.system, row.scores["ciou"]) for row in rows]
        yield Chart(rows[0].source, charts.bars(entries, rows[0].source))


def _scatters(report: Report, series: Mapping[str, charts.Sign]) -> Iterator[Chart]:
    for rows in _by_source(report):
        points = [
            charts.Point(series[row.system], row.system, seconds, row.scores["ciou"])
            for row in rows
            if (seconds := row.cell.seconds_per_phrase) and row.scores.phrases
        ]
        if points:
            yield Chart(rows[0].source, charts.scatter(points, rows[0].source))


def _slices(report: Report, series: Mapping[str, charts.Sign]) -> Iterator[Charts]:
    for rows in _by_source(report):
        drawn, note = _drawn(rows)
        found = []
        titles = {part.key: part.title for row in rows for part in row.slicings}
        for key, title in titles.items():
            by_row = {row.system: part for row in rows for part in row.slicings if part.key == key}
            shown = [
                (series[row.system], row.system, by_row[row.system])
                for row in drawn
                if row.system in by_row
            ]
            if shown:
                svg = charts.slices(shown, f"{rows[0].source}, {title}")
                heading = ("System", "Group", "Phrases", "cIoU", "mIoU", "mIoU, 95 %")
                found.append(Chart(title, svg, heading, tuple(_slice_rows(by_row))))
        if found:
            yield Charts(rows[0].source, tuple(found), note)


def _slice_rows(by_row: Mapping[str, Slicing]) -> Iterator[tuple[str, ...]]:
    for system, slicing in by_row.items():
        for part in slicing.slices:
            yield (
                system,
                part.name,
                str(part.scores.phrases),
                percent(part.scores["ciou"].value),
                percent(part.scores["miou"].value),
                interval(part.scores["miou"]) or "–",
            )
        if slicing.left_out:
            yield (system, "unknown or not shown", str(slicing.left_out), "–", "–", "–")


def _calibrations(report: Report, series: Mapping[str, charts.Sign]) -> Iterator[Charts]:
    for rows in _by_source(report):
        known = [row for row in rows if row.reliability is not None]
        if not known:
            continue
        drawn, note = _drawn(known)
        shown = [
            (series[row.system], row.system, row.reliability)
            for row in drawn
            if row.reliability is not None
        ]
        table = tuple(
            (row.system, percent(row.reliability.error), str(int(row.reliability.counts.sum())))
            for row in known
            if row.reliability is not None
        )
        heading = ("System", "Calibration error, %", "Phrases")
        svg = charts.calibration(shown, rows[0].source)
        chart = Chart(rows[0].source, svg, heading, table)
        yield Charts(rows[0].source, (chart,), note)


def _drawn(rows: list[Row]) -> tuple[list[Row], str]:
    """The rows that a chart has room for, and what says so."""
    if len(rows) <= DRAWN:
        return rows, ""
    ranked = sorted(rows, key=lambda row: -(row.scores["ciou"].value or 0))[:DRAWN]
    return (
        [row for row in rows if row in ranked],
        f"Drawn are the {DRAWN} systems with the highest cIoU of {len(rows)}; the tables have all.",
    )


def _by_source(report: Report, *, by_protocol: bool = False) -> Iterator[list[Row]]:
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in report.rows:
        groups.setdefault((row.source, row.protocol if by_protocol else ""), []).append(row)
    yield from groups.values()


def _signs(report: Report) -> dict[str, charts.Sign]:
    """A colour and shape for each backbone's model, a fill for each method and protocol."""
    systems = report.benchmark.systems
    models = list(dict.fromkeys(system[:2] for system in systems))
    ways = sorted({system[2:] for system in systems}, key=lambda way: (way[0] != "head", way))
    return {
        label: charts.Sign(models.index(system[:2]), ways.index(system[2:]))
        for system, label in systems.items()
    }


def _small(sign: charts.Sign) -> Markup:
    drawn = charts.marker(sign, 8, 8, 5.5)
    return Markup('<svg class="sign" viewBox="0 0 16 16" aria-hidden="true">{}</svg>').format(drawn)


def _with_interval(score: Score) -> str:
    ends = interval(score)
    return percent(score.value) + (f" (95\xa0%: {ends})" if ends else "")


def _fact(value: Any) -> str:
    """A fact of the provenance as text."""
    if value is None:
        return "–"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_fact(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return " ".join(map(_fact, value))
    return str(value)
