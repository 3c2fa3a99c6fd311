from __future__ import annotations

from pathlib import Path

import pytest

from tests.cached import Runs


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    return Runs(random_twin, drawn, tmp_path)
