"""What the subcommands share: progress on stderr, figures on stdout, and writable folders."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from flmm_core.errors import UsageError

if TYPE_CHECKING:
    from flmm_core.progress import Progress


def make_progress() -> Progress:
    """A bar if stderr is a terminal, lines elsewhere."""
    import rich.console

    from flmm_core.progress import LineProgress, TerminalProgress

    if sys.stderr.isatty():
        return TerminalProgress(rich.console.Console(stderr=True))
    return LineProgress(lambda line: click.echo(line, err=True))


def echo_json(content: Any) -> None:
    """One JSON object on stdout."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def echo_table(rows: Iterable[Sequence[str]], indent: str = "") -> None:
    """Columns as wide as their widest cell, two blanks between them."""
    table = list(rows)
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        click.echo(indent + "  ".join(cells).rstrip())


def check_writable(folder: Path, repair: str = "Give another --output.") -> None:
    """See that files can be made in a folder, or the folder itself, before hours of work.

    Raises:
        UsageError: They cannot.
    """
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        with tempfile.TemporaryFile(dir=place):
            return
    except OSError as error:
        raise UsageError(
            f"The output folder '{folder}' cannot be written.",
            found=f"{error.strerror}: {place}.",
            repair=repair,
        ) from error
