"""Shared by the subcommands: progress on stderr, tables and JSON on stdout, writable folders."""

from __future__ import annotations

import gc
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from flmm_core.cli.sooner import postpone_imports
from flmm_core.errors import FlmmError, UsageError, plain

if TYPE_CHECKING:
    from flmm_core.progress import Progress

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


def make_progress() -> Progress:
    """A progress bar if stderr is a terminal, else lines."""
    import rich.console

    from flmm_core.progress import LineProgress, TerminalProgress

    if sys.stderr.isatty():
        return TerminalProgress(rich.console.Console(stderr=True))
    return LineProgress(lambda line: click.echo(line, err=True))


@contextmanager
def importing() -> Iterator[None]:
    """While torch, transformers and models are loaded: without looking for garbage, or compiling.

    There is no garbage among modules, and the looking takes a sixth of the time.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        postpone_imports()
        yield
        gc.freeze()  # nor is there any later
    finally:
        if was_enabled:
            gc.enable()


def for_each_line(do: Callable[[str], None]) -> int:
    """Do something with one line of stdin after the other, until Ctrl-C or the end of the input.

    What is wrong with one is told, and the next is asked for; Ctrl-C meanwhile ends only that one.
    Empty lines are passed over. Returns how many lines there were.
    """
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")  # `do` says which line is not UTF-8
    count = 0
    while True:
        try:
            if sys.stdin.isatty():
                click.echo("> ", nl=False, err=True)
            line = sys.stdin.readline()
        except KeyboardInterrupt:
            break
        if not line:
            break
        if not line.strip():
            continue
        count += 1
        try:
            do(line.strip())
        except KeyboardInterrupt:
            click.echo(err=True)
        except FlmmError as error:
            click.echo(f"flmm: {error}", err=True)
    if sys.stdin.isatty():
        click.echo(err=True)
    return count


def echo_json(content: Any) -> None:
    """Print one JSON object."""
    click.echo(json.dumps(content, indent=2, ensure_ascii=False))


def echo_table(rows: Iterable[Sequence[str]], indent: str = "") -> None:
    """Print left-aligned columns with two spaces between them, each row on one line."""
    table = [[plain(text) for text in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        padded = [text.ljust(width) for text, width in zip(row, widths, strict=True)]
        click.echo(indent + "  ".join(padded).rstrip())


def one_process_only(command: str) -> None:
    """`UsageError` under `torchrun` and the like, for a command that does not share its work."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        processes = os.environ.get(name, "1")
        if processes.strip() not in ("", "0", "1"):
            raise UsageError(
                f"`{command}` runs in one process, but {name} is {processes}.",
                found="It does not share its work among the processes of `torchrun`, `srun` or"
                " `accelerate launch`; each would do all of it.",
                repair="Start it without a launcher; --device picks the accelerator.",
            )
