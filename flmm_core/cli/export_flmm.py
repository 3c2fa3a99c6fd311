"""`flmm export-flmm`"""

from __future__ import annotations

from pathlib import Path

import click

from flmm_core.errors import UsageError
from flmm_core.files import check_writable


@click.command("export-flmm")
@click.argument("head")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--half", is_flag=True, help="Write float16 instead of float32.")
def command(head: str, file: Path, half: bool) -> None:
    """Write a head as a checkpoint of the original F-LMM.

    HEAD is a run folder, a head folder or a hub id. FILE gets a flat state dict with the names of
    the original, by torch.save, or as safetensors if it ends so. Heads with what the original does
    not have are refused: whole captions, "not there", other sizes of the U-Net.
    """
    if file.exists():
        raise UsageError(f"'{file}' exists already.", repair="Give another FILE.")
    check_writable(file.parent, repair="Give another FILE.")
    from flmm_core.pipeline.original import export_original

    count = export_original(head, file, half=half)
    click.echo(f"{file}: {count} tensors, {'float16' if half else 'float32'}")
