"""Commands of the pages on what is small and at hand: drawn images, toy models and heads."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import click
from torch.distributed.run import get_args_parser

from flmm_core.cli import flmm

STARTERS = ("flmm", "torchrun", "srun", "accelerate", "python")


def arguments(words: list[str]) -> list[str] | None:
    """What `flmm` is given by a command, whatever starts it; None if it starts something else.

    Variables of the shell are left out.
    """
    first, *rest = (word for word in words if not word.startswith("$"))
    if first == "torchrun":
        parsed = get_args_parser().parse_args(rest)  # torchrun's own
        assert (parsed.module, parsed.training_script) == (True, "flmm_core"), words
        return list(parsed.training_script_args)
    if first in ("srun", "accelerate") and "flmm" in rest:
        return rest[rest.index("flmm") + 1 :]
    if first in ("python", "accelerate") and "flmm_core" in rest:
        return rest[rest.index("flmm_core") + 1 :]
    return rest if first == "flmm" else None


def command_of(given: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The (sub)command that arguments of `flmm` name, its parent's context, what it is given."""
    command: click.Command = flmm
    context = click.Context(flmm, info_name="flmm")
    rest = list(given)
    while isinstance(command, click.Group) and rest and not rest[0].startswith("-"):
        found = command.get_command(context, rest[0])
        assert found is not None, f"no such command: flmm {shlex.join(given)}"
        if command is not flmm:
            context = click.Context(command, parent=context)
        command, rest = found, rest[1:]
    return command, context, rest


def parse(given: list[str]) -> dict[str, Any]:
    """The parameters of a command as click parses them; raises click.UsageError."""
    command, context, rest = command_of(given)
    return command.make_context(command.name, rest, parent=context).params


def options(command: click.Command) -> set[str]:
    found = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return found | {"--help", "--version"}


def replaced(given: list[str], *rules: tuple[str, str]) -> list[str]:
    """The same command on stand-ins: regular expressions over the whole line, in turn."""
    text = shlex.join(given)
    for pattern, other in rules:
        text = re.sub(pattern, other, text)
    return shlex.split(text)


def small_run(run: Path, twin: Path, drawn: Path) -> dict[str, Any]:
    """Settings of a run of two steps behind a toy model."""
    source = f"refcoco:{drawn}@train"
    return {
        "backbone": "qwen", "model": str(twin), "output": str(run), "data": [source],
        "val_data": [source], "eval_data": [source], "steps": 2, "batch_size": 2, "log_every": 1,
        "save_every": 2, "pictures": 1, "refiner": "none",
        "head": {"base_channels": 4, "enlarge_to": 16},
    }  # fmt: skip
