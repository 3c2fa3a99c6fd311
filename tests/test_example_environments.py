"""What `.ci/examples` makes: an example sees flmm, and beside it what it declares."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import tomllib
from importlib.machinery import SourceFileLoader
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from tests.examples import FOLDER

SCRIPT = FOLDER.parent / ".ci" / "examples"
FIND = (
    "import importlib.util, json, sys;"
    "print(json.dumps([name for name in sys.argv[1:] if importlib.util.find_spec(name)]))"
)


@pytest.fixture(scope="module")
def script() -> Any:
    found = importlib.util.spec_from_loader(
        "ci_examples", SourceFileLoader("ci_examples", f"{SCRIPT}")
    )
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_flmms_extras_are_not_seen(script: Any, tmp_path: Path) -> None:
    layer = script.link_needed(tmp_path / "layer")
    python = script.make_environment(tmp_path / "environment", layer)
    asked = "flmm_core", "torch", "transformers", "pytest", "hypothesis", "ruff", "num2words"
    settings = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, "-c", FIND, *asked], env=settings, cwd=tmp_path, capture_output=True, check=True
    )
    assert json.loads(done.stdout) == ["flmm_core", "torch", "transformers"]


@pytest.mark.parametrize(
    "example", sorted(FOLDER.glob("*/pyproject.toml")), ids=lambda p: p.parent.name
)
def test_an_example_declares_flmm_which_it_would_see_anyway(example: Path) -> None:
    project = tomllib.loads(example.read_text())["project"]
    assert "flmm" in {Requirement(each).name for each in project["dependencies"]}
    assert set(project["entry-points"]) == {"flmm"}
