"""`flmm export-flmm`"""

from __future__ import annotations

from pathlib import Path

import click

from flmm_core.errors import UsageError
from flmm_core.files import check_writable


@click.command("export-flmm")
@click.argument("head", metavar="HEAD", type=click.Path(path_type=Path))
@click.argument("path", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--half", is_flag=True, help="Write float16 instead of float32.")
def command(head: Path, path: Path, half: bool) -> None:
    """Write a head as a checkpoint of the original F-LMM.

    HEAD is a run or head folder whose head could be one of the original's: imported from it, or
    trained with its rounding, captions and prompts. FILE becomes a flat state dict (torch.save).
    """
    if path.exists():
        raise UsageError(f"'{path}' exists already.", repair="Give another name.")
    check_writable(path)
    from flmm_core.pipeline.original import export_head

    count = export_head(head, path, half=half)
    click.echo(f"{path}: {count} tensors")
