"""The command `flmm`: one file a subcommand, imported when it is called."""

from __future__ import annotations

import errno
import importlib
import logging
import os
import sys
from collections.abc import Sequence

import click

from flmm_core import __version__
from flmm_core.errors import FlmmError, did_you_mean, reader_died

COMMANDS = {
    "train": "Train a mask head on a frozen model.",
    "eval": "Measure a trained head on data sets.",
    "benchmark": "Measure backbones on data sets, all on all, and write the report.",
    "report": "Show a benchmark as a page and tables, or compare two.",
    "cache": "Keep what the frozen parts say, to train without running them.",
    "ground": "Find phrases in an image.",
    "backbones": "List the installed backbones, or show one.",
    "data": "Draw, check and convert data sets.",
}
INTERRUPTED = 130
# What a user can repair although the operating system says it; any other OSError is our bug.
REPAIRABLE = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS}


class _LazyGroup(click.Group):
    """Imports a subcommand's module only to run it or to show its own help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"flmm_core.cli.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in COMMANDS and not args[0].startswith("-"):
            ctx.fail(f"No such command '{args[0]}'. {did_you_mean(args[0], COMMANDS)}".rstrip())
        return super().resolve_command(ctx, args)


@click.group(cls=_LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="flmm %(version)s")
def flmm() -> None:
    """Masks from frozen vision-language models.

    A backbone's attention says where its words are; a small head turns that into masks.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done, 1 run failed, 2 usage or configuration, 3 weights, data or an extra missing,
    130 interrupted. FLMM_DEBUG=1 shows the traceback of every error.
    """
    _show_log()
    try:
        result = flmm.main(arguments, prog_name="flmm", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        click.echo(f"flmm: {error.format_message()}", err=True)
        if isinstance(error, click.UsageError) and error.ctx:
            click.echo(f"`{error.ctx.command_path} --help` shows how it is used.", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        hint = str(error.__cause__ or error)
        click.echo(f"flmm: Interrupted. {hint}".rstrip(), err=True)
        return INTERRUPTED
    except FlmmError as error:
        if _debugging():
            raise
        click.echo(f"flmm: {error}", err=True)
        return error.exit_code
    except OSError as error:
        if _debugging() or error.errno not in REPAIRABLE:
            raise
        place = f": {error.filename}" if error.filename else ""
        click.echo(f"flmm: {error.strerror}{place}.", err=True)
        return 1
    except RuntimeError as error:
        died = reader_died(error)
        if _debugging() or died is None:
            raise
        click.echo(f"flmm: {died}", err=True)
        return died.exit_code
    return result if isinstance(result, int) else 0


def _debugging() -> bool:
    return os.environ.get("FLMM_DEBUG", "") not in ("", "0")


class _EchoHandler(logging.Handler):
    """Writes to whatever stderr is at the time: a progress bar redirects it."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


def _show_log() -> None:
    handler = _EchoHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    log = logging.getLogger("flmm_core")
    log.handlers = [handler]
    log.propagate = False
    # Loading bars and warnings of the libraries below would drown our own lines.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
