"""The report's table as Markdown, CSV, LaTeX and JSON.

Markdown and LaTeX are for people: percent, the 95 % interval beside each figure, no empty columns.
CSV and JSON are for machines: fractions of 1, every column.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from tabulate import tabulate

from flmm_core import __version__
from flmm_core.evaluation.scores import titles
from flmm_core.report.peers import TITLES as PUBLISHED_TITLES
from flmm_core.report.table import BenchmarkReport, ReportRow, interval, percent, said_p, signed

NOTE = (
    "IoUs in percent, with 95 % bootstrap intervals over images; "
    "“to the best” is the difference of cIoU to the highest row of the same data and protocol, "
    "with the p-value of a paired test (not corrected for multiple comparisons)."
)


def to_markdown(report: BenchmarkReport) -> str:
    """Pipe tables, as GitHub renders them."""
    scores, published = _tables(report, "pipe", " ({})", _escape)
    name = _escape(report.benchmark.folder.resolve().name)
    text = f"# Benchmark {name}\n\n{scores}\n\n{NOTE}\n"
    return text + (f"\n## Published figures\n\n{published}\n" if published else "")


def to_latex(report: BenchmarkReport) -> str:
    """A `tabular` for booktabs, and one of published figures if there are any."""
    scores, published = _tables(report, "latex_booktabs", " [{}]", str)
    text = f"% \\usepackage{{booktabs}}\n% {NOTE}\n{scores}\n"
    text += f"\n% Published figures\n{published}\n" if published else ""
    # LaTeX older than 2020 does not know the real minus.
    return text.replace("−", "$-$")


def to_csv(report: BenchmarkReport) -> str:
    """One line per row; intervals in their own columns, empty where there is no figure."""
    lines: list[dict[str, object]] = []
    for row in report.rows:
        system = zip(
            ("backbone", "model", "method", "protocol"), row.measurement.system, strict=True
        )
        line: dict[str, object] = {**dict(system), "source": row.measurement.facts.source}
        line |= {"phrases": row.scores.phrases, "pictures": row.scores.pictures}
        for name in titles():
            score = row.scores[name]
            line |= {name: score.value, f"{name}_low": score.low, f"{name}_high": score.high}
        line |= {"seconds_per_phrase": row.measurement.seconds_per_phrase, "best": row.best}
        behind = row.behind and asdict(row.behind)
        for end, key in (("", "difference"), ("_low", "low"), ("_high", "high"), ("_p", "p")):
            line[f"to_best{end}"] = behind and behind[key]
        lines.append(line)
    file = io.StringIO()
    writer = csv.DictWriter(file, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return file.getvalue()


def to_json(report: BenchmarkReport) -> str:
    """One object: provenance, and per row all scores, slices and the calibration."""
    published = None
    if report.published:
        columns = report.published[0].figures
        published = {
            "columns": [{"source": source, "score": score} for source, score in columns],
            "rows": [
                {**vars(peer), "figures": list(peer.figures.values())} for peer in report.published
            ],
        }
    content = {
        "flmm": __version__,
        "benchmark": report.benchmark.facts.model_dump(mode="json"),
        "cells": [_row_dict(row) for row in report.rows],
        "unfinished": list(report.benchmark.unfinished),
        "published": published,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: Mapping[str, tuple[str, Callable[[BenchmarkReport], str]]] = {
    "markdown": (".md", to_markdown),
    "csv": (".csv", to_csv),
    "latex": (".tex", to_latex),
    "json": (".json", to_json),
}
"""Name of a format -> its file suffix and its writer."""


def seconds(value: float | None) -> str:
    """Seconds with two significant digits."""
    return "–" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def to_best(row: ReportRow) -> str:
    """The difference to the best row with its p-value, as text."""
    if row.behind is None:
        return "best" if row.is_best else "–"
    return f"{signed(row.behind.difference)} ({said_p(row.behind.p)})"


def published_title(column: tuple[str, str]) -> str:
    """The heading of a column of published figures: its data, and its score if not cIoU."""
    source, score = column
    return source if score == "ciou" else f"{source} {PUBLISHED_TITLES[score]}"


def _tables(
    report: BenchmarkReport, form: str, interval_form: str, escape: Callable[[str], str]
) -> tuple[str, str]:
    """The tables of scores and of published figures, the latter empty if there are none."""
    titles_ = [titles()[name] for name in report.shown]
    table = [["Data", "System", "Protocol", "Phrases", "Images", *titles_]]
    table[0] += ["s/phrase", "to the best"]
    for row in report.rows:
        line = [row.source, row.system, row.protocol]
        line += [str(row.scores.phrases), str(row.scores.pictures)]
        for score in (row.scores[name] for name in report.shown):
            ends = interval(score)
            line.append(percent(score.value) + (interval_form.format(ends) if ends else ""))
        table.append([*line, seconds(row.measurement.seconds_per_phrase), to_best(row)])
    published = []
    for peer in report.published:
        frozen = "yes" if peer.vlm_frozen else "no"
        figures = map(percent, peer.figures.values())
        published.append([peer.system, peer.paper, peer.protocol, frozen, *figures, peer.note])
    if published:
        columns = map(published_title, report.published[0].figures)
        published.insert(0, ["System", "Source", "Protocol", "VLM frozen", *columns, "Note"])

    def write(table: list[list[str]], left: int) -> str:
        heading, *body = ([escape(" ".join(text.split())) for text in row] for row in table)
        align = ["left" if place < left else "right" for place in range(len(heading))]
        return tabulate(body, heading, form, disable_numparse=True, colalign=align)

    return write(table, 3), write(published, 4) if published else ""


def _escape(text: str) -> str:
    return "".join(f"\\{sign}" if sign in "\\`*_|[]<>#" else sign for sign in text)


def _row_dict(row: ReportRow) -> dict[str, Any]:
    found = row.reliability
    return {
        "cell": row.measurement.folder.name,
        "system": row.system,
        "source_label": row.source,
        **asdict(row.scores),
        "seconds_per_phrase": row.measurement.seconds_per_phrase,
        "best": row.best,
        "to_best": row.behind and asdict(row.behind),
        "slices": {
            slicing.key: {
                "title": slicing.title,
                "left_out": slicing.left_out,
                "groups": {name: asdict(part) for name, part in slicing.groups.items()},
            }
            for slicing in row.slicings
        },
        "calibration": None
        if found is None
        else {
            "expected_calibration_error": found.error,
            "stated": [None if math.isnan(value) else value for value in found.stated],
            "right": [None if math.isnan(value) else value for value in found.right],
            "counts": found.counts,
        },
        "provenance": row.measurement.facts.model_dump(mode="json"),
    }
