"""The report's table as Markdown, CSV, LaTeX and JSON.

Markdown and LaTeX are for people: percent, the 95 % interval beside each figure, columns without
any figure left out. CSV and JSON are for machines: fractions of 1, every column.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

from flmm_core import __version__
from flmm_core.report.peers import TITLES as PUBLISHED_TITLES
from flmm_core.report.peers import Published
from flmm_core.report.scores import TITLES, Score, Scores
from flmm_core.report.slices import Reliability
from flmm_core.report.table import Report, Row, interval, percent, said_p, signed

NOTE = (
    "IoUs in percent, with 95 % bootstrap intervals over images; "
    "“to the best” is the difference of cIoU to the highest row of the same data and protocol, "
    "with the p-value of a paired test (not corrected for several comparisons)."
)
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "−": r"$-$",
    "±": r"$\pm$",
    "·": r"$\cdot$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def to_markdown(report: Report) -> str:
    """Pipe tables, as GitHub shows them."""
    heading, *body = _cells(report, interval_form=" ({})")
    lines = [
        f"# Benchmark {_markdown(report.benchmark.folder.resolve().name)}",
        "",
        *_pipes(heading, body, left=3),
        "",
        NOTE,
    ]
    if report.published:
        lines += ["", "## Published figures", "", *_published_pipes(report.published)]
    return "\n".join(lines) + "\n"


def to_latex(report: Report) -> str:
    """A `tabular` for booktabs, and one of published figures if there are any."""
    heading, *body = _cells(report, interval_form=" [{}]")
    text = "% \\usepackage{booktabs}\n" + "% " + NOTE + "\n" + _tabular(heading, body, left=3)
    if report.published:
        heading, *body = _published_cells(report.published)
        text += "\n% Published figures\n" + _tabular(heading, body, left=4)
    return text


def to_csv(report: Report) -> str:
    """A line a cell; intervals in columns of their own, empty where there is no figure."""
    file = io.StringIO()
    facts = ("backbone", "model", "method", "protocol", "source", "phrases", "pictures")
    scores = [f"{name}{end}" for name in TITLES for end in ("", "_low", "_high")]
    to_best = ("best", "to_best", "to_best_low", "to_best_high", "to_best_p")
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*facts, *scores, "seconds_per_phrase", *to_best])
    for row in report.rows:
        behind = row.behind
        figures: list[Any] = []
        for name in TITLES:
            score = row.scores[name]
            figures += [score.value, score.low, score.high]
        writer.writerow(
            [
                *row.cell.system,
                row.cell.facts.source,
                row.scores.phrases,
                row.scores.pictures,
                *figures,
                row.cell.seconds_per_phrase,
                row.best,
                *(
                    (behind.difference, behind.low, behind.high, behind.p)
                    if behind
                    else (None,) * 4
                ),
            ]
        )
    return file.getvalue()


def to_json(report: Report) -> str:
    """One object: provenance, and by cell all scores, slices and calibration."""
    benchmark = report.benchmark
    content = {
        "flmm": __version__,
        "benchmark": benchmark.facts.model_dump(mode="json"),
        "cells": [_cell_dict(row) for row in report.rows],
        "unfinished": list(benchmark.unfinished),
        "published": _published_dict(report.published) if report.published else None,
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


FORMATS: Mapping[str, tuple[str, Callable[[Report], str]]] = {
    "markdown": (".md", to_markdown),
    "csv": (".csv", to_csv),
    "latex": (".tex", to_latex),
    "json": (".json", to_json),
}
"""What a format is called -> its file ending, and what writes it."""


def seconds(value: float | None) -> str:
    """Seconds with two significant digits."""
    return "–" if value is None else f"{value:.2g}" if value < 10 else f"{value:.0f}"


def to_best(row: Row) -> str:
    """The difference to the best row with its p-value, as text."""
    if row.is_best:
        return "best"
    if row.behind is None:
        return "–"
    return f"{signed(row.behind.difference)} ({said_p(row.behind.p)})"


def _cells(report: Report, interval_form: str) -> list[list[str]]:
    shown = report.shown
    rows = [
        ["Data", "System", "Protocol", "Phrases", "Pictures"]
        + [TITLES[name] for name in shown]
        + ["s/phrase", "to the best"]
    ]
    for row in report.rows:
        scores = [row.scores[name] for name in shown]
        figures = [
            percent(score.value)
            + (interval_form.format(interval(score)) if interval(score) else "")
            for score in scores
        ]
        rows.append(
            [
                row.source,
                row.system,
                row.protocol,
                str(row.scores.phrases),
                str(row.scores.pictures),
                *figures,
                seconds(row.cell.seconds_per_phrase),
                to_best(row),
            ]
        )
    return rows


def published_title(column: tuple[str, str]) -> str:
    """The heading of a column of published figures: its data, and its score if not cIoU."""
    source, score = column
    return source if score == "ciou" else f"{source} {PUBLISHED_TITLES[score]}"


def _published_cells(published: Published) -> list[list[str]]:
    return [
        ["System", "Source", "Protocol", "VLM frozen"]
        + [published_title(column) for column in published.columns]
        + ["Note"],
        *(
            [row.system, row.paper, row.protocol, "yes" if row.vlm_frozen else "no"]
            + [percent(figure) for figure in row.figures]
            + [row.note]
            for row in published.rows
        ),
    ]


def _published_pipes(published: Published) -> list[str]:
    heading, *body = _published_cells(published)
    return _pipes(heading, body, left=4)


def _pipes(heading: list[str], body: list[list[str]], left: int) -> list[str]:
    rule = ["---" if place < left else "---:" for place in range(len(heading))]
    return [
        "| " + " | ".join(cells) + " |"
        for cells in (
            [_markdown(c) for c in heading],
            rule,
            *([_markdown(c) for c in row] for row in body),
        )
    ]


def _markdown(text: str) -> str:
    escaped = "".join(f"\\{sign}" if sign in "\\`*_|[]<>#" else sign for sign in text)
    return " ".join(escaped.split())


def _tabular(heading: list[str], body: list[list[str]], left: int) -> str:
    columns = "l" * left + "r" * (len(heading) - left)
    lines = [" & ".join(map(_latex, row)) + r" \\" for row in (heading, *body)]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            "",
        ]
    )


def _latex(text: str) -> str:
    return " ".join("".join(_LATEX.get(sign, sign) for sign in text).split())


def _cell_dict(row: Row) -> dict[str, Any]:
    return {
        "cell": row.cell.folder.name,
        "system": row.system,
        "source_label": row.source,
        **_scores_dict(row.scores),
        "seconds_per_phrase": row.cell.seconds_per_phrase,
        "best": row.best,
        "to_best": None if row.behind is None else vars(row.behind),
        "slices": {
            slicing.key: {
                "title": slicing.title,
                "left_out": slicing.left_out,
                "groups": {part.name: _scores_dict(part.scores) for part in slicing.slices},
            }
            for slicing in row.slicings
        },
        "calibration": None if row.reliability is None else _reliability_dict(row.reliability),
        "provenance": row.cell.facts.model_dump(mode="json"),
    }


def _scores_dict(scores: Scores) -> dict[str, Any]:
    return {
        "phrases": scores.phrases,
        "pictures": scores.pictures,
        "scores": {name: _score_dict(scores[name]) for name in TITLES},
    }


def _score_dict(score: Score) -> dict[str, float | None]:
    return {"value": score.value, "low": score.low, "high": score.high}


def _reliability_dict(found: Reliability) -> dict[str, Any]:
    def clean(values: Any) -> list[float | None]:
        return [None if math.isnan(value) else float(value) for value in values]

    return {
        "expected_calibration_error": found.error,
        "stated": clean(found.stated),
        "right": clean(found.right),
        "counts": [int(count) for count in found.counts],
    }


def _published_dict(published: Published) -> dict[str, Any]:
    return {
        "columns": [{"source": source, "score": score} for source, score in published.columns],
        "rows": [vars(row) for row in published.rows],
    }
