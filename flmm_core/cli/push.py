"""`flmm push`"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flmm_core.cli.console import echo_table

CONTENTS = {
    "README.md": "model card",
    "config.json": "how the head is built, and what its model is recognized by",
    "model.safetensors": "weights of the head",
    "confidence.json": "calibrated confidence",
}


@click.command("push")
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("repo", metavar="OWNER/NAME")
@click.option(
    "--private/--public",
    default=None,
    help="Visibility of a new repository.  [default: its owner's]",
)
@click.option("--message", help="Message of the commit.")
@click.option("--create-pr", is_flag=True, help="Propose the commit as a pull request.")
@click.option("--branch", help="Branch to commit to.  [default: main]")
@click.option("--model", help="Hub id of the model, if the run names it by a local folder.")
@click.option("--adapter", help="Hub id of the adapter, if the run names it by a local folder.")
@click.option(
    "--license", "terms", default="", help="License of the head, as the hub spells it (mit)."
)
@click.option("--dry-run", is_flag=True, help="Show what would be uploaded, and stop.")
def command(
    run: Path,
    repo: str,
    model: str | None,
    adapter: str | None,
    terms: str,
    dry_run: bool,
    branch: str | None,
    **parameters: Any,
) -> None:
    """Publish a trained head on the Hugging Face hub.

    RUN is a run folder, a checkpoint or a head's folder. The model, its adapter and the refiner's
    image encoder are not uploaded, nor any path of this machine. The model card has scores,
    settings and versions of the run. `flmm ground --head OWNER/NAME` uses the head.
    """
    from flmm_core.pipeline.publish import check_repo, staged, upload
    from flmm_core.training.published import evidence_of, find_local_head

    check_repo(repo)
    head = find_local_head(run)
    evidence = evidence_of(run, terms)
    with staged(head, repo, evidence, model=model, adapter=adapter) as folder:
        files = sorted(folder.iterdir())
        click.echo(f"{'Would upload' if dry_run else 'Uploading'} {head} to {repo}:", err=True)
        echo_table((path.name, f"{path.stat().st_size:,}", CONTENTS[path.name]) for path in files)
        if dry_run:
            click.echo((folder / "README.md").read_text(encoding="utf-8"))
            return
        click.echo(upload(folder, repo, revision=branch, **parameters))
