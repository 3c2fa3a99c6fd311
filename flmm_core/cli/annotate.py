"""`flmm annotate`"""

from __future__ import annotations

from typing import Any

import click

from flmm_core.cli.console import echo_json, importing, json_option, make_progress
from flmm_core.cli.options import AS_TRAINED, PLACEMENT, config_options, given_behind
from flmm_core.errors import UsageError
from flmm_core.files import check_writable


@click.command("annotate")
@click.argument("sources", metavar="SOURCE...", nargs=-1, required=True)
@click.option("-p", "--phrase", "phrases", multiple=True, help="What to segment; repeatable.")
@click.option(
    "--ask",
    default=None,
    help="Instead of phrases: ask the model this of each image, and segment what it names.",
)
@click.option("--finder", default="rules", help="Of phrases in answers; `flmm finders` lists them.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=64, help="Longest answer, in tokens."
)
@click.option(
    "--head",
    required=True,
    help="Trained head: a run folder, a head folder or a hub id (NAME@REVISION).",
)
@click.option("--output", required=True, help="Folder for the shards; may be an address.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["parquet", "coco"]),
    default="parquet",
    help="Of the shards.",
)
@click.option(
    "--image-column",
    help="Of parquet sources.  [default: image, file_name, image_path, path or url]",
)
@click.option("--phrases-column", help="Of parquet sources.  [default: phrases, if it is there]")
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Processes with a model each.  [default: one per GPU, or one]",
)
@click.option(
    "--gpus-per-worker", type=click.FloatRange(min=0), help="[default: 1 if there are any]"
)
@click.option("--ray-address", help="Of a Ray cluster.  [default: $RAY_ADDRESS, or this machine]")
@click.option(
    "--block-size",
    type=click.IntRange(min=1),
    default=256,
    help="Images per shard: what is done again if a worker dies.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    help="Most phrases at a time, of one image or of several.",
)
@click.option(
    "--together", is_flag=True, help="Read all phrases in one caption instead of one by one."
)
@click.option(
    "--keep-absent",
    is_flag=True,
    help='Keep the masks of phrases, too, that the head says are "not there".',
)
@config_options(*PLACEMENT, "force", "strict", "check")
@config_options(*AS_TRAINED, unset="as in training")
@json_option
def command(
    sources: tuple[str, ...],
    phrases: tuple[str, ...],
    ask: str | None,
    finder: str,
    max_new_tokens: int,
    head: str,
    output: str,
    form: str,
    image_column: str | None,
    phrases_column: str | None,
    workers: int | None,
    gpus_per_worker: float | None,
    ray_address: str | None,
    block_size: int,
    batch_size: int,
    together: bool,
    keep_absent: bool,
    as_json: bool,
    **parameters: Any,
) -> None:
    """Segment phrases in very many images, with Ray.

    SOURCE is a folder (with all folders in it), a pattern, an image, a JSONL list
    ({"image": "a.jpg", "phrases": ["a red ring"]} a line) or parquet files, as a path or an
    address such as s3://bucket/photos. Images that bring no phrases get those of -p.

    Each block of images becomes one shard, written whole or not at all: the same command again
    does what is missing, and adds images that are new. Images that cannot be used are listed in
    left-out.jsonl.
    """
    for number, phrase in enumerate(phrases, start=1):
        if not phrase.strip():
            raise UsageError(f"Phrase {number} is empty.", repair="Give it at least one word.")
    if ask is not None and (phrases or not ask.strip()):
        raise UsageError(
            "--ask and -p contradict each other." if phrases else "The question is empty.",
            found=f"--ask {ask!r} segments what the model's answers name.",
            repair="Give phrases or a question.",
        )
    if "://" not in output:
        from pathlib import Path

        check_writable(Path(output))
    given = given_behind(parameters)
    with importing():
        from flmm_core.annotate.folder import Manner
        from flmm_core.annotate.inputs import Columns
        from flmm_core.annotate.on_ray import annotate
        from flmm_core.annotate.worker import Job

    job = Job(
        output=output,
        head=head,
        given=given,
        phrases=tuple(dict.fromkeys(phrase.strip() for phrase in phrases)),
        manner=Manner(together, keep_absent),
        columns=Columns(image_column or "", phrases_column or ""),
        ask=(ask or "").strip(),
        finder=finder,
        max_new_tokens=max_new_tokens,
        form="coco" if form == "coco" else "parquet",
        block_size=block_size,
        batch_size=batch_size,
    )
    summary = annotate(
        sources,
        job,
        workers=workers,
        gpus_per_worker=gpus_per_worker,
        address=ray_address,
        progress=make_progress(),
    )
    if as_json:
        echo_json(vars(summary))
        return
    click.echo(f"{output}: {summary.images} images in {summary.shards} shards")
    if summary.left_out:
        click.echo(f"{summary.left_out} cannot be used: {output}/left-out.jsonl")
