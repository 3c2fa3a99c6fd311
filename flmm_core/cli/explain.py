"""`flmm explain`"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli.console import echo_json, echo_table, importing, json_option, make_progress
from flmm_core.cli.options import (
    AS_TRAINED,
    PLACEMENT,
    config_options,
    given_behind,
    given_settings,
)
from flmm_core.errors import UsageError
from flmm_core.files import check_writable

if TYPE_CHECKING:
    from flmm_core.explain.explanation import Explanation
    from flmm_core.pipeline.backbone.base import Backbone
    from flmm_core.pipeline.grounder import Grounder

SHOWN = 8
"""Words that are printed per region."""


def _numbers(
    ctx: click.Context, param: click.Parameter, values: tuple[str, ...]
) -> list[tuple[float, ...]]:
    """Texts "X,Y" or "X0,Y0,X1,Y1", as the metavar says, to numbers."""
    form, found = str(param.metavar), []
    for text in values:
        try:
            numbers = tuple(float(part) for part in text.split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != len(form.split(",")):
            raise click.BadParameter(f"'{text}' is not of the form {form}.", ctx, param)
        found.append(numbers)
    return found


@click.command("explain")
@click.argument("path", metavar="IMAGE", type=click.Path(path_type=Path))
@click.option(
    "--text",
    help="Words that the model is taken to have answered; [[marked phrases]] get overlays.",
)
@click.option("--ask", help="A question; the model's own answer is explained.")
@click.option("--head", help="Trained head, which adds its learned maps; brings its model along.")
@click.option("--word", "words", multiple=True, help="Word or phrase of the text; repeatable.")
@click.option(
    "--point",
    "points",
    multiple=True,
    metavar="X,Y",
    callback=_numbers,
    help="Which words look here, in pixels; repeatable.",
)
@click.option(
    "--box",
    "boxes",
    multiple=True,
    metavar="X0,Y0,X1,Y1",
    callback=_numbers,
    help="Which words look into this box; repeatable.",
)
@click.option(
    "--mask",
    "masks",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Which words look at what this image (0: outside) covers; repeatable.",
)
@click.option(
    "--by",
    type=click.Choice(("heads", "mean", "learned")),
    default="heads",
    help="Maps: of the attention heads that localize best, the mean of all, or what the trained "
    "head makes of a word.",
)
@click.option(
    "--top-k",
    type=click.IntRange(min=1),
    default=3,
    help="How many attention heads --by heads takes.",
)
@click.option("--layer", type=int, help="Maps of this layer, from 0; -1 is the last.")
@click.option("--attention-head", type=int, help="Of that layer.")
@click.option("--view", help="Of a backbone with several views of an image.")
@click.option("--no-sinks", is_flag=True, help="Leave out cells that every word looks at.")
@click.option("--tokens", is_flag=True, help="Explain single tokens instead of words.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=64, help="Longest answer to --ask."
)
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    default=Path("explanation"),
    help="Folder for explanation.html, .npz and .json and one overlay per word.",
)
@config_options("backbone", "options", *PLACEMENT, "force", "strict", "check")
@config_options(*AS_TRAINED, unset="of the backbone, or as in training")
@json_option
def command(
    path: Path,
    text: str | None,
    ask: str | None,
    head: str | None,
    words: tuple[str, ...],
    points: Sequence[tuple[float, ...]],
    boxes: Sequence[tuple[float, ...]],
    masks: tuple[Path, ...],
    by: str,
    top_k: int,
    layer: int | None,
    attention_head: int | None,
    view: str | None,
    no_sinks: bool,
    tokens: bool,
    max_new_tokens: int,
    output: Path,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Show where words look in an image, and which look at a place.

    \b
    flmm explain photo.jpg --backbone NAME --ask "Describe the image."
    flmm explain photo.jpg --head RUN --text "a red ring" --word ring --point 120,80

    The maps are the attention of each word to the image. No trained head is needed: the attention
    heads that localize are found on drawn scenes, the first time a model is explained.

    Writes a page to look at (explanation.html), all maps (explanation.npz), the words
    (explanation.json) and an overlay per word.
    """
    where: dict[str, Any] = {"layer": layer, "attention_head": attention_head, "view": view}
    _check(text, ask, head, by, where, parameters)
    check_writable(output)
    from flmm_core.data.images import read_image
    from flmm_core.explain.make import explain
    from flmm_core.explain.regions import cell_weights

    image = read_image(path)
    regions = [("point", point) for point in points] + [("box", box) for box in boxes]
    shown = [(f"{kind} {','.join(f'{n:g}' for n in place)}", place) for kind, place in regions]
    shown += [(f"mask {mask}", _read_mask(mask)) for mask in masks]
    for _, place in shown:  # before a model is loaded
        cell_weights(place, (image.height, image.width), (1, 1))
    found = explain(
        _load(head, parameters),
        image,
        text=text,
        ask=ask,
        prompt=parameters["prompt"],
        split="tokens" if tokens else "words",
        top_k=top_k,
        layers=None if layer is None else [layer],
        max_new_tokens=max_new_tokens,
        progress=make_progress(),
    )
    looks = {name: found.words_at(place, by, **where) for name, place in shown}
    files = found.save(output, words, by, sinks=not no_sinks, **where)
    if as_json:
        _print_json(found, looks, files, path)
        return
    click.echo(found.text.strip())
    rows = [("word", "looks most at", "overlay")]
    overlays = files[3:]
    for places, file in zip(found.chosen(words), overlays, strict=True):
        x, y = found.peak(places, by, sinks=not no_sinks, **where)
        said = found.text[found.words[places[0]].start : found.words[places[-1]].end]
        rows.append((said, f"{x:.0f},{y:.0f}", str(file)))
    echo_table(rows)
    for name, ranked in looks.items():
        click.echo(f"{name}: which words look here, and how many times as much as the mean")
        echo_table([(f"{look.lift:.2f}", look.text) for look in ranked[:SHOWN]], indent="  ")
    click.echo(f"page: {files[2]}")


def _check(
    text: str | None,
    ask: str | None,
    head: str | None,
    by: str,
    where: dict[str, Any],
    parameters: dict[str, Any],
) -> None:
    """What can be told before a model is loaded."""
    if (text is None) == (ask is None):
        raise UsageError(
            "Give either --text or --ask.",
            found="Found both." if text is not None else "Found neither.",
            repair="--text explains words that you give, --ask the model's own answer.",
        )
    for name, words in (("--text", text), ("--ask", ask)):
        if words is not None and not words.strip():
            raise UsageError(f"{name} is empty.", repair="Give it at least one word.")
    if ask is not None and parameters["prompt"] is not None:
        raise UsageError(
            "--ask and --prompt contradict each other.",
            found="The question is the prompt.",
            repair="Give one of them.",
        )
    if (head is None) == (parameters["backbone"] is None):
        raise UsageError(
            "Give either --backbone or --head.",
            found="Found both." if head is not None else "Found neither.",
            repair="--backbone NAME (with --model) explains a model alone; --head RUN brings its "
            "model along.",
        )
    if by == "learned" and head is None:
        raise UsageError(
            "There is no learned map without a trained head.",
            found="--by learned was given, but no --head.",
            repair="Give --head RUN, or --by heads or mean.",
        )
    if where["attention_head"] is not None and where["layer"] is None:
        raise UsageError(
            "--attention-head needs a layer.",
            found=f"--attention-head {where['attention_head']} was given alone.",
            repair="Give --layer, too.",
        )


def _load(head: str | None, parameters: dict[str, Any]) -> Backbone | Grounder:
    with importing():
        if head is not None:
            from flmm_core import Grounder

            given = given_behind(parameters)
            given.pop("prompt", None)  # it is the explanation's, not the head's
            return Grounder.from_pretrained(head, **given)
        from flmm_core.config import load_config
        from flmm_core.pipeline.build import backbone_from_config
        from flmm_core.plugins import load_backbones

        given = given_settings(parameters)
        for name in ("force", "strict", "refiner_weights"):
            given.pop(name, None)
        return backbone_from_config(*load_config(None, given, load_backbones().get))


def _read_mask(path: Path) -> Any:
    """(H, W) what is above 0 in an image."""
    import numpy as np

    from flmm_core.data.images import read_image

    return np.asarray(read_image(path)).max(axis=2)


def _print_json(
    found: Explanation, looks: dict[str, list[Any]], files: Sequence[Path], path: Path
) -> None:
    from dataclasses import asdict

    from flmm_core.explain.files import facts

    at = {name: [asdict(look) for look in ranked] for name, ranked in looks.items()}
    echo_json(
        {"path": str(path), **facts(found), "words_at": at, "files": [str(file) for file in files]}
    )
