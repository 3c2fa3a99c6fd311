from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core import Backbone
from flmm_core.testing import load_for_checks
from flmm_llava_next import SPEC
from recipes import twins


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, untrained."""
    return twins.build_twin("llava_next", tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The real geometry (tiles of 336, patch 14, five canvases) around a thin, untrained model."""
    geometry = {"pixels": 336, "patch": 14, "grids": ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))}
    folder = tmp_path_factory.mktemp("full_size")
    return load_for_checks(SPEC, twins.build_twin("llava_next", folder, **geometry))


@pytest.fixture(scope="session", params=["llava", "llava_onevision"])
def relative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of another generation, untrained."""
    return twins.build_twin(request.param, tmp_path_factory.mktemp("relative"))
