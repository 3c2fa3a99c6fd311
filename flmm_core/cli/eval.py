"""`flmm eval`"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from flmm_core.cli import evaluation_options as shared
from flmm_core.cli.console import echo_json, echo_table, json_option, make_progress
from flmm_core.cli.options import AS_TRAINED, PLACEMENT, config_options, given_behind
from flmm_core.cli.processes import joined, processes_option, start

HEADINGS = ("data", "masks", "coarse cIoU", "mIoU", "refined cIoU", "mIoU")
DATA_SETS = {"generalised": "gRefCOCO ", "reasoning": "ReasonSeg "}


@click.command("eval")
@click.argument("run")
@shared.data_option
@click.option(
    "--protocol",
    type=shared.PROTOCOLS,
    help=f"{shared.PROTOCOL_HELP}  [default: as in training]",
)
@click.option("--method", type=shared.METHODS, default="head", help=shared.METHOD_HELP)
@shared.method_data_option
@shared.abstain_option
@config_options(*PLACEMENT, "workers", "force", "strict", "check", "max_skipped")
@config_options(*AS_TRAINED, unset="as in training")
@shared.batch_size_option
@shared.limit_option
@processes_option
@json_option
def command(
    run: str, data: tuple[str, ...], as_json: bool, processes: int | None, **parameters: Any
) -> None:
    """Evaluate a trained head on data sets.

    RUN is a run folder of `flmm train`, a head folder or a hub id
    (owner/name, owner/name@revision). cIoU and mIoU are fractions of
    1, of the coarse and of the refined masks. Further scores are printed if the data has what they
    need: phrases without target, ignored regions, tags of PNG.
    """
    given = given_behind(parameters)
    names = ("protocol", "method", "method_data", "abstain", "batch_size", "limit")
    given |= {name: parameters[name] for name in names}
    with joined(processes) as world:
        start(processes, given.get("device", "auto"), world)
        from flmm_core.evaluation.evaluate import evaluate_run

        found = evaluate_run(run, data, progress=make_progress(), world=world, **given)
    if not world.is_main:
        return
    if as_json:
        echo_json(found)
        return
    method = "" if given["method"] == "head" else f" by {given['method']}"
    below = found["abstain_below"]
    abstaining = "" if below is None else f', "not there" below a probability of {below:.4f}'
    about = f"{found['backbone']}, protocol {found['protocol']}{abstaining}"
    click.echo(f"{found['run']}{method}: {about}")
    echo_table([HEADINGS, *_rows(found["data"])])
    for name, scores in found["data"].items():
        if further := ", ".join(_further(scores)):
            click.echo(f"{name}: {further}")


def _rows(scores: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row per data source, and a row per slice if it has several."""
    for name, parts in scores.items():
        coarse, refined = parts["coarse"], parts["refined"]
        yield _row(name, coarse, refined)
        slices = refined.get("slices", {})
        if len(slices) > 1:
            for slice_name in slices:
                yield _row(f"  {slice_name}", coarse["slices"][slice_name], slices[slice_name])


def _row(name: str, *parts: dict[str, Any]) -> tuple[str, ...]:
    values = [part[score] for part in parts for score in ("ciou", "miou")]
    shown = ["-" if value is None else f"{value:.4f}" for value in values]
    return (name, str(parts[0]["masks"]), *shown)


def _further(parts: dict[str, Any]) -> Iterator[str]:
    """The other scores of a data source, of the refined masks."""
    from flmm_core.evaluation.scores import SCORES, group

    for name in ("box", "point", *DATA_SETS):
        for key, score in group(name).items():
            value, title = parts.get(name, {}).get(key), SCORES[score].title
            if title and value is not None:
                yield f"{DATA_SETS.get(name, '')}{title} {value:.4f}"
    if "auroc" in parts.get("generalised", {}):
        yield f"AUROC {parts['generalised']['auroc']:.4f}"
    if parts.get("calibration", {}).get("ece") is not None:
        yield f"calibration error {parts['calibration']['ece']:.4f}"
    for subset, recall in parts.get("recall", {}).get("average_recall", {}).items():
        if recall is not None:
            yield f"average recall ({subset}) {recall:.4f}"
    if parts.get("skipped"):
        yield f"{parts['skipped']} skipped"
