"""`flmm chat`"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli.console import (
    echo_json,
    echo_table,
    for_each_line,
    importing,
    json_option,
)
from flmm_core.cli.options import AS_TRAINED, PLACEMENT, config_options, given_behind
from flmm_core.errors import UsageError
from flmm_core.files import check_writable

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone
    from flmm_core.pipeline.conversation.answer import Answer
    from flmm_core.pipeline.grounder import Grounder

Messages = list[dict[str, Any]]
Ask = Callable[[Any, Messages], tuple[dict[str, Any], Messages]]
"""Images and messages -> what to print as JSON, and the conversation with the answer."""


@click.command("chat")
@click.argument("path", metavar="IMAGE", type=click.Path(path_type=Path))
@click.argument("question", required=False)
@click.option(
    "--head",
    help="Trained head: a run folder, a head folder or a hub id (NAME@REVISION). Without one the "
    "model talks, and nothing is masked.",
)
@click.option(
    "--output", type=click.Path(path_type=Path), help="Folder for an answer and its masks."
)
@click.option(
    "--phrases",
    default="rules",
    help="Which words to mask: a phrase finder (`flmm finders`).",
)
@click.option("--zoom", is_flag=True, help="Look at the thing that matters from near, then answer.")
@click.option("--look-at", help="With --zoom: the thing that matters, instead of asking the model.")
@click.option("--compare", is_flag=True, help="With --zoom: the answer without it, too.")
@click.option("--keep-absent", is_flag=True, help='Mask also what the head says is "not there".')
@click.option("--max-new-tokens", type=click.IntRange(min=1), default=256, help="Of an answer.")
@click.option(
    "--temperature",
    type=click.FloatRange(min=0, min_open=True),
    help="Draw the words at random, at this temperature.  [default: the likeliest words]",
)
@click.option("--seed", type=int, help="Of what is drawn.")
@click.option("--backbone", help="Without --head: the family of the model (`flmm backbones`).")
@config_options(*PLACEMENT, "force", "strict", "check")
@config_options(*AS_TRAINED, unset="as in training")
@json_option
def command(
    path: Path,
    question: str | None,
    head: str | None,
    output: Path | None,
    phrases: str,
    zoom: bool,
    look_at: str | None,
    compare: bool,
    keep_absent: bool,
    max_new_tokens: int,
    temperature: float | None,
    seed: int | None,
    backbone: str | None,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Ask about an image, and see what the answer names.

    \b
    flmm chat photo.jpg "What is on the table?" --head RUN --output out
    flmm chat photo.jpg --head RUN

    Without a QUESTION it asks for one after the other, until Ctrl-C or the end of the input; the
    model keeps what was said. With --output, overlay.png, mask-1.png, ..., result.json and
    answer.json of the last answer are in that folder. With --json each answer is one JSON object.
    """
    _check(head, backbone, output=output, zoom=zoom, look_at=look_at, compare=compare)
    if question is not None and not question.strip():
        raise UsageError("The question is empty.", repair="Give it at least one word.")
    if output is not None:
        check_writable(output)
    from flmm_core.data.images import read_image

    image = read_image(path)
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "seed": seed}
    if temperature is not None:
        how |= {"do_sample": True, "temperature": temperature}
    given = given_behind(parameters)
    with importing():
        if head is None:
            assert backbone is not None
            ask = _talker(_backbone(backbone, given), how, as_json)
        else:
            from flmm_core import Grounder

            grounder = Grounder.from_pretrained(head, **given)
            how |= {"phrases": phrases}
            if zoom:
                looking = {"look_at": look_at, "compare": compare}
                ask = _thinker(grounder, how | looking, output, as_json)
            else:
                ask = _pointer(grounder, how | {"keep_absent": keep_absent}, output, as_json)
    if question is None:
        _converse(ask, image, as_json)
    else:
        said, _ = ask(image, [{"role": "user", "content": question}])
        if as_json:
            echo_json({"image": str(path), "question": question, **said})


def _check(head: str | None, backbone: str | None, *, zoom: bool, **others: Any) -> None:
    if head is not None and backbone is not None:
        raise UsageError(
            "--head and --backbone contradict each other.",
            found="A head knows its backbone.",
            repair="Give one of them.",
        )
    if head is None and backbone is None:
        raise UsageError(
            "There is no model to talk to.",
            repair="Give --head RUN, or --backbone NAME to talk without masks.",
        )
    wanted = {"--output": others["output"], "--zoom": zoom}
    for option, value in wanted.items():
        if head is None and value:
            raise UsageError(
                f"{option} needs a trained head.",
                found="Without one nothing is masked.",
                repair="Give --head.",
            )
    for option, value in {"--look-at": others["look_at"], "--compare": others["compare"]}.items():
        if value and not zoom:
            raise UsageError(f"{option} says how to zoom.", repair="Give --zoom, too.")


def _backbone(name: str, given: dict[str, Any]) -> Backbone:
    """A model without a head."""
    from flmm_core.plugins import load_backbones, load_class

    spec = load_backbones().get(name)
    refused = {"force", "strict", "check", "refiner_weights"}
    given = {key: value for key, value in given.items() if key not in refused}
    if "model_revision" in given:
        given["revision"] = given.pop("model_revision")
    loaded: Backbone = load_class(spec).load(spec, **{"device": "auto", **given})
    return loaded


def _talker(backbone: Backbone, how: dict[str, Any], quiet: bool) -> Ask:
    def ask(image: Any, messages: Messages) -> tuple[dict[str, Any], Messages]:
        tell = None if quiet else lambda text: click.echo(text, nl=False)
        reply = backbone.reply(image, messages, on_text=tell, **how)
        if not quiet:
            click.echo()
        return {"text": reply.text}, reply.messages

    return ask


def _pointer(grounder: Grounder, how: dict[str, Any], output: Path | None, quiet: bool) -> Ask:
    def ask(image: Any, messages: Messages) -> tuple[dict[str, Any], Messages]:
        answer: Any = None
        for part in grounder.stream(image, messages, **how):
            if isinstance(part, str) and not quiet:
                click.echo(part, nl=False)
            answer = part
        if not quiet:
            click.echo()
            _show(answer)
        _save(answer, output)
        return answer.to_json(), answer.messages

    return ask


def _thinker(grounder: Grounder, how: dict[str, Any], output: Path | None, quiet: bool) -> Ask:
    def ask(image: Any, messages: Messages) -> tuple[dict[str, Any], Messages]:
        thought = grounder.think(image, messages, **how)
        looked = None if thought.found is None else thought.found.phrase
        said = {"looked_at": looked, "crop": thought.box, **thought.answer.to_json()}
        if thought.plain is not None and thought.crop is not None:
            said["plain"] = thought.plain.to_json()
        if not quiet:
            if thought.plain is not None and thought.crop is not None:
                click.echo(f"plain: {thought.plain.text}")
            click.echo(f"looked at: {looked or 'nothing was found'}")
            click.echo(thought.text)
            _show(thought.answer)
        _save(thought.answer, output)
        return said, [*messages, thought.answer.messages[-1]]  # it goes on about the image alone

    return ask


def _show(answer: Answer) -> None:
    """A table of what was found."""
    if not len(answer):
        return
    rows = [("phrase", "score", "probability", "box")]
    for span in answer:
        likely = "-" if span.probability is None else f"{span.probability:.2f}"
        found = f"{span.score:.2f}" if span.there else "not there"
        rows.append((span.phrase, found, likely, " ".join(map(str, span.box))))
    echo_table(rows, indent="  ")


def _save(answer: Answer, output: Path | None) -> None:
    if output is not None:
        answer.save(output)


def _converse(ask: Ask, image: Any, as_json: bool) -> None:
    """Question after question; the model keeps what was said."""
    messages: Messages = []

    def answer(question: str) -> None:
        nonlocal messages
        said, messages = ask(image, [*messages, {"role": "user", "content": question}])
        if as_json:
            click.echo(json.dumps({"question": question, **said}, ensure_ascii=False))

    for_each_line(answer)
