"""docs/training.md: its commands and options exist, its arithmetic is right."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from flmm_core.cli import flmm
from flmm_core.feature_cache.codec import MapType, Packing

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_every_command_and_option_of_the_page_exists() -> None:
    lines = [
        line for block in re.findall(r"```\n(.*?)```", PAGE, re.S) for line in block.split("\n")
    ]
    commands = [shlex.split(line) for line in lines if line.startswith("flmm ")]
    commands += [shlex.split(text) for text in re.findall(r"`(flmm [a-z]+ .*?)`", PAGE)]
    assert len(commands) > 8
    for words in commands:
        command, context = flmm, click.Context(flmm)
        path = words[1:]
        while isinstance(command, click.Group):
            found = command.get_command(context, path.pop(0))
            assert found is not None, words
            command = found  # type: ignore[assignment]
        known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
        assert {word for word in path if word.startswith("--")} <= known | {"--help"}, words


@pytest.mark.parametrize("maps", ["float32", "float16", "uint8"])
def test_the_sizes_of_the_page_follow_from_the_packing(maps: MapType) -> None:
    packing, phrases = Packing(maps, hidden=True), 42_404
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `--maps {maps}` |"))
    shown = [float(text) for text in re.findall(r"([\d.]+) GB", row)]
    import torch

    sizes = [
        phrases * 576 * packing.map_bytes(23 * 17),
        phrases * 4 * 36 * 2048 * packing.hidden_type(torch.bfloat16).itemsize,
        16_994 * 256 * 64 * 64 * packing.embedding_type.itemsize,
    ]
    wanted = [size / 1e9 for size in (*sizes, sum(sizes))]
    assert shown == pytest.approx(wanted, rel=0.03)
