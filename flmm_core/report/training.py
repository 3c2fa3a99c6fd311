"""Writes `training.html` of a run: one self-contained page, also while the run is going on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from PIL import Image

from flmm_core import __version__, files
from flmm_core.config.resolve import flat
from flmm_core.config.resume import CONFIG
from flmm_core.config.yaml_files import read_yaml
from flmm_core.errors import DataError
from flmm_core.report.charts import Chart, Curve, Sign, curves
from flmm_core.report.gallery import data_uri
from flmm_core.report.table import percent
from flmm_core.report.templates import template
from flmm_core.training.run_folder import ENVIRONMENT, METRICS, SUMMARY, RunFolder

PAGE = "training.html"
SHEET_WIDTH = 1100
"""Pixels; a contact sheet has five panels side by side."""

Row = Mapping[str, Any]
NOT_LOSSES = {
    "step", "learning_rate", "gradient_norm", "pictures_per_second", "phrases_per_second",
    "share_waiting_for_data",
}  # fmt: skip


def write_training_page(run: Path) -> Path:
    """Write the page of a run folder; returns its path.

    Raises:
        DataError: The folder has no run, or a file of it is broken.
    """
    if not (run / CONFIG).is_file():
        raise DataError(
            f"The folder '{run}' has no run.",
            found=f"It has no {CONFIG}." if run.is_dir() else "There is no such folder.",
            repair="Name the run folder of `flmm train`.",
        )
    page = run / PAGE
    files.write_text(page, render_training_page(run))
    return page


def render_training_page(run: Path) -> str:
    """The whole page.

    Raises:
        DataError: A file of the run is broken.
    """
    settings = dict(flat(read_yaml(run / CONFIG)[0]))
    summary, environment = (_read_json(run / name) for name in (SUMMARY, ENVIRONMENT))
    folder = RunFolder(run, 1, 0)
    rows = [row for row in folder.rows() if isinstance(row, dict) and "step" in row]
    trained = [row for row in rows if "validation" not in row]
    validated = [row for row in rows if "validation" in row]
    best = max(
        (row for row in validated if row.get("validation_ciou") is not None),
        key=lambda row: row["validation_ciou"],
        default=None,
    )
    steps = settings.get("steps") or 0
    end = summary.get("stopped_after") or steps
    return template("training.html.j2").render(
        name=run.resolve().name,
        version=__version__,
        settings=settings,
        environment=environment,
        summary=summary,
        done=max((row["step"] for row in rows), default=0),
        end=end,
        best=best,
        scores=list(_scores(summary)),
        training=list(_training_charts(trained)),
        validation=list(_validation_charts(validated, best)),
        waiting=_mean(trained, "share_waiting_for_data"),
        sheets=[_sheet(path) for path in sorted(folder.pictures.glob("*.png"))],
        left_out=summary.get("left_out", []),
        commands=dict(next_commands(run, finished=bool(summary))),
        metrics=METRICS,
    )


def next_commands(run: Path, *, finished: bool) -> Iterator[tuple[str, str]]:
    """What one does with a run: (what for, command)."""
    folder = quote(str(run))
    if not finished:
        yield "Go on", f"flmm train --resume --output {folder}"
    yield "Segment phrases in an image", f'flmm ground IMAGE "a phrase" --head {folder}'
    yield "Evaluate on other data", f"flmm eval {folder} --data NAME:PATH@SPLIT"


def _training_charts(rows: Sequence[Row]) -> Iterator[Chart]:
    if not rows:
        return
    losses = [key for key in rows[0] if key not in NOT_LOSSES]
    yield _chart("Loss", rows, {key: key.replace("_", " ") for key in losses})
    yield _rate_chart(rows)
    yield _chart("Gradient norm before clipping", rows, {"gradient_norm": "gradient norm"})
    yield _chart(
        "Throughput, per second",
        rows,
        {"pictures_per_second": "images", "phrases_per_second": "phrases"},
    )


def _rate_chart(rows: Sequence[Row]) -> Chart:
    """In a power of ten, since rates have many zeros."""
    rates = [(row["step"], row["learning_rate"]) for row in rows if "learning_rate" in row]
    power = math.floor(math.log10(max((rate for _, rate in rates), default=0) or 1))
    title = f"Learning rate, 1e{power}"
    curve = Curve(Sign(0), title, [(step, rate / 10.0**power) for step, rate in rates])
    return Chart(title, curves([curve], title))


def _chart(title: str, rows: Sequence[Row], labels: Mapping[str, str]) -> Chart:
    shown = [
        Curve(Sign(number), label, [(row["step"], row[key]) for row in rows if key in row])
        for number, (key, label) in enumerate(labels.items())
    ]
    legend = [(curve.sign, curve.label) for curve in shown] if len(shown) > 1 else []
    return Chart(title, curves(shown, title), legend=legend)


def _validation_charts(rows: Sequence[Row], best: Row | None) -> Iterator[Chart]:
    if not rows:
        return
    found = {"refined": Sign(0), "coarse": Sign(1)}
    shown = [
        Curve(
            sign,
            part,
            [(row["step"], value) for row in rows if (value := _ciou(row, part)) is not None],
        )
        for part, sign in found.items()
    ]
    figures: list[tuple[str, ...]] = [
        ("Step", "Refined cIoU, %", "Coarse cIoU, %", "Selected by, %")
    ]
    figures += [
        (
            f"{row['step']}{' (best)' if row is best else ''}",
            *(percent(_ciou(row, part)) for part in found),
            percent(row.get("validation_ciou")),
        )
        for row in rows
    ]
    title = "cIoU on the validation data, %"
    svg = curves(
        shown, title, best=best["step"] if best else None, say=lambda value: percent(value, 0)
    )
    yield Chart(title, svg, figures, legend=[(sign, part) for part, sign in found.items()])


def _ciou(row: Row, part: str) -> float | None:
    value = row["validation"].get(part, {}).get("ciou")
    return None if value is None else float(value)


def _scores(summary: Row) -> Iterator[tuple[str, int, Mapping[str, Any]]]:
    """(data, masks, part -> scores) of each data source and of its slices."""
    for source, found in summary.get("evaluations", {}).items():
        parts = {part: found[part] for part in ("coarse", "refined")}
        yield source, parts["refined"]["masks"], parts
        slices = parts["refined"].get("slices", {})
        for name in slices if len(slices) > 1 else ():
            inner = {part: found[part]["slices"][name] for part in parts}
            yield f"– {name}", inner["refined"]["masks"], inner


def _mean(rows: Sequence[Row], key: str) -> float | None:
    values = [row[key] for row in rows if key in row]
    return sum(values) / len(values) if values else None


def _sheet(path: Path) -> tuple[str, str, tuple[int, int]]:
    """(name, data URI, size) of a contact sheet."""
    with Image.open(path) as image:
        sheet = image.convert("RGB")
    sheet.thumbnail((SHEET_WIDTH, SHEET_WIDTH * 20))
    return path.stem, data_uri(sheet), sheet.size


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object; an empty one if there is no such file.

    Raises:
        DataError: The file is broken.
    """
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
        assert isinstance(content, dict)
    except (OSError, ValueError, AssertionError) as error:
        raise DataError(
            f"The file '{path}' cannot be read.",
            found=f"{type(error).__name__}: {error}",
            repair="`flmm train --resume` writes it again.",
        ) from error
    return content
