"""The command `flmm`: one file per subcommand, imported when it is called."""

from __future__ import annotations

import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence

import click

from flmm_core import __version__
from flmm_core.errors import FlmmError, dead_worker_error, did_you_mean, machine_error

COMMANDS = {
    "train": "Train a mask head on a frozen model.",
    "eval": "Evaluate a trained head on data sets.",
    "benchmark": "Evaluate every backbone on every data set, and write a report.",
    "report": "Show a benchmark or a run as a page, or compare benchmarks.",
    "cache": "Precompute the outputs of the frozen models for training.",
    "explain": "Show where words look in an image, and which look at a place.",
    "ground": "Segment phrases in images.",
    "chat": "Ask about an image, and see what the answer names.",
    "annotate": "Segment phrases in very many images, with Ray.",
    "serve": "Serve trained heads over HTTP.",
    "demo": "Talk and point on a web page.",
    "verify": "Check that a head's model is what it was in training.",
    "push": "Publish a trained head on the Hugging Face hub.",
    "backbones": "List the installed backbones, or show one.",
    "refiners": "List the installed refiners, or show one.",
    "finders": "List the installed phrase finders, or show one.",
    "doctor": "Examine the installation: versions, devices, plugins, folders.",
    "data": "Draw, check, convert and split data sets.",
    "import-flmm": "Make a head of a checkpoint of the original F-LMM.",
    "export-flmm": "Write a head as a checkpoint of the original F-LMM.",
}
INTERRUPTED = 130
CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


class _LazyGroup(click.Group):
    """Imports the module of a subcommand only to run it or to show its help."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"flmm_core.cli.{cmd_name.replace('-', '_')}").command
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


@click.group(cls=_LazyGroup, context_settings=CONTEXT)
@click.version_option(__version__, message="flmm %(version)s")
def flmm() -> None:
    """Masks from frozen vision-language models.

    A small trained head turns the attention maps of a frozen model into masks.
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code.

    0 done, 1 run failed, 2 usage or configuration, 3 weights, data or an extra missing,
    130 interrupted. With FLMM_DEBUG=1 every error has its traceback.
    """
    _show_log()
    for stream in (sys.stdout, sys.stderr):  # names of files need not be text
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        given = list(sys.argv[1:] if arguments is None else arguments)
        # The arguments are the context's object, for a command that starts itself again.
        result = flmm.main(given, prog_name="flmm", standalone_mode=False, obj=given)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return error.exit_code
    except click.ClickException as error:
        if isinstance(error, click.NoSuchOption):
            error = click.UsageError(f"{error.format_message()} {_own(error)}".rstrip(), error.ctx)
        click.echo(f"flmm: {error.format_message()}", err=True)
        if isinstance(error, click.UsageError) and error.ctx:
            click.echo(f"`{error.ctx.command_path} --help` shows its usage.", err=True)
        return error.exit_code
    except (click.Abort, KeyboardInterrupt) as error:
        hint = str(error.__cause__ or error)
        click.echo(f"flmm: Interrupted. {hint}".rstrip(), err=True)
        return INTERRUPTED
    except (FlmmError, OSError, MemoryError, RuntimeError) as error:
        known = error if isinstance(error, FlmmError) else machine_error(error)
        known = known or dead_worker_error(error)
        if _debugging() or known is None:
            raise
        click.echo(f"flmm: {known}", err=True)
        return known.exit_code
    return result if isinstance(result, int) else 0


def _own(error: click.NoSuchOption) -> str:
    """What to type where an option is a plugin's own."""
    from flmm_core.cli.own_options import did_you_mean_own

    if "-sam-" in error.option_name:  # older versions had --sam-* options
        return "Did you mean '--refiner-option'?"
    return did_you_mean_own(error)


def _debugging() -> bool:
    return os.environ.get("FLMM_DEBUG", "") not in ("", "0")


class _EchoHandler(logging.Handler):
    """Writes to the current stderr, which a progress bar redirects."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)


class _LineFormatter(logging.Formatter):
    """Says of everything but plain information what it is."""

    def format(self, record: logging.LogRecord) -> str:
        told = super().format(record)
        return told if record.levelno == logging.INFO else f"{record.levelname}: {told}"


def _show_log() -> None:
    handler = _EchoHandler()
    handler.setFormatter(_LineFormatter())
    log = logging.getLogger("flmm_core")
    log.setLevel(logging.INFO)
    log.handlers = [handler]
    log.propagate = False
    # Our own lines would be lost among progress bars and warnings of libraries.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    if not sys.stderr.isatty():
        os.environ.setdefault("TQDM_DISABLE", "1")
