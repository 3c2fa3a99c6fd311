"""`flmm eval`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import click

from flmm_core.cli.console import echo_json, echo_table, make_progress
from flmm_core.cli.options import config_options, given_settings
from flmm_core.config import Protocol
from flmm_core.evaluation.phrase_rows import Method


@click.command("eval")
@click.argument("run")
@click.option(
    "--data",
    multiple=True,
    default=["shapes@test"],
    show_default=True,
    help="Measure on NAME[:PATH][@SPLIT]; repeatable.",
)
@click.option(
    "--protocol",
    type=click.Choice(get_args(Protocol)),
    help="Each sentence alone, or all objects of an image in one caption."
    "  [default: as in training]",
)
@click.option(
    "--method",
    type=click.Choice(get_args(Method)),
    default="head",
    show_default=True,
    help="What makes the masks; all but the head work without training.",
)
@click.option(
    "--method-data",
    multiple=True,
    help="Labelled data of which such a method sees a few samples; repeatable."
    "  [default: what the head was trained on]",
)
@click.option(
    "--abstain",
    is_flag=True,
    help='Answer "not there" below the threshold that the head\'s training chose.',
)
@config_options("device", "workers")
@config_options("model", "refiner_weights", unset="where it lay in training")
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=16,
    show_default=True,
    help="Samples that are read together; the figures do not depend on it.",
)
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many samples of each.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    run: str,
    data: tuple[str, ...],
    protocol: str | None,
    method: str,
    method_data: tuple[str, ...],
    abstain: bool,
    batch_size: int,
    limit: int | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Measure a trained head on data sets.

    RUN is the folder that `flmm train` wrote, a head's folder or a hub id. cIoU and mIoU are
    fractions of 1, of the coarse and of the refined masks. Other scores follow where the data has a
    use for them: phrases without target, regions to ignore, PNG's tags.
    """
    from flmm_core.evaluation.evaluate import evaluate_run

    figures = evaluate_run(
        run,
        data,
        protocol=protocol,
        method=method,
        method_data=method_data,
        abstain=abstain,
        batch_size=batch_size,
        limit=limit,
        progress=make_progress(),
        **given_settings(parameters),
    )
    if as_json:
        echo_json(figures)
        return
    made_by = "" if method == "head" else f" by {method}"
    below = figures["abstain_below"]
    said = "" if below is None else f', "not there" below a probability of {below:.4f}'
    about = f"{figures['backbone']}, protocol {figures['protocol']}{said}"
    click.echo(f"{figures['run']}{made_by}: {about}")
    echo_table([HEADINGS, *_rows(figures["data"])])
    for name, parts in figures["data"].items():
        if more := ", ".join(_more(parts)):
            click.echo(f"{name}: {more}")


HEADINGS = ("data", "masks", "coarse cIoU", "mIoU", "refined cIoU", "mIoU")
MORE = {
    "box": {"accuracy": "box accuracy@0.5"},
    "point": {"accuracy": "point in mask"},
    "generalised": {
        "giou": "gRefCOCO gIoU",
        "ciou": "gRefCOCO cIoU",
        "n_acc": "N-acc",
        "t_acc": "T-acc",
    },
    "reasoning": {"giou": "ReasonSeg gIoU", "ciou": "ReasonSeg cIoU"},
    "calibration": {"ece": "calibration error"},
}


def _rows(scores: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row a source, and one below it a slice where there are several."""
    for name, parts in scores.items():
        coarse, refined = parts["coarse"], parts["refined"]
        yield _row(name, coarse, refined)
        slices = refined.get("slices", {})
        if len(slices) > 1:
            for slice_name in slices:
                yield _row(f"  {slice_name}", coarse["slices"][slice_name], slices[slice_name])


def _more(parts: dict[str, Any]) -> Iterator[str]:
    """What else the source has a use for, of the refined masks."""
    for kind, scores in MORE.items():
        for key, title in scores.items():
            if kind in parts and parts[kind].get(key) is not None:
                yield f"{title} {parts[kind][key]:.4f}"
    for subset, recall in parts.get("recall", {}).get("average_recall", {}).items():
        if recall is not None:
            yield f"average recall ({subset}) {recall:.4f}"
    if parts.get("skipped"):
        yield f"{parts['skipped']} left out"


def _row(name: str, *parts: dict[str, Any]) -> tuple[str, ...]:
    figures = [part[score] for part in parts for score in ("ciou", "miou")]
    shown = ["-" if figure is None else f"{figure:.4f}" for figure in figures]
    return (name, str(parts[0]["masks"]), *shown)
