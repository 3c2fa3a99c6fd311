from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from tests.flows import fresh_grounder


@pytest.fixture(scope="session")
def head(random_twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head with fresh weights behind a toy model."""
    recipe = Recipe("qwen", str(random_twin), base_channels=4, enlarge_to=16)
    folder = tmp_path_factory.mktemp("head") / "head"
    return fresh_grounder(recipe).save_pretrained(folder)


@pytest.fixture(scope="session")
def grounder(head: Path) -> Grounder:
    return Grounder.from_pretrained(head)


@pytest.fixture(scope="session")
def scenes(drawn: Path) -> list[Path]:
    """Six images of drawn scenes."""
    return sorted(drawn.rglob("*.png"))
