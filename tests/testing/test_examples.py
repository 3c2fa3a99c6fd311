"""Plugins of few lines whose geometry is measured pass the whole conformance kit."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import pytest

from flmm_core.testing import check_backbone
from tests.examples import FOLDER, example

LINES = 25


def lines_of(path: Path) -> int:
    """Without comments, the docstring and empty lines."""
    text = path.read_text()
    docstring = ast.parse(text).body[0]
    outside = text.splitlines()[docstring.end_lineno :]
    return sum(bool(line.partition("#")[0].strip()) for line in outside)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["idefics3", "gemma3", "paligemma"])
def test_a_plugin_of_few_lines_keeps_every_promise(name: str, tmp_path: Path) -> None:
    package = FOLDER / f"{name}_backbone" / f"flmm_{name}"
    assert sum(lines_of(path) for path in package.glob("*.py")) <= LINES
    tiny = example(name).make_tiny(tmp_path / "tiny")
    check_backbone(importlib.import_module(package.name).SPEC, tiny)
