from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core import Backbone
from flmm_core.testing import load_for_checks
from flmm_deepseek_vl import SPEC
from recipes import twins


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, untrained."""
    return twins.build_twin("deepseek_vl", tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The real geometry (384 pixels, patch 16) around a thin, untrained model."""
    folder = tmp_path_factory.mktemp("full_size")
    return load_for_checks(SPEC, twins.build_twin("deepseek_vl", folder, pixels=384, patch=16))


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of the hybrid kind, untrained."""
    return twins.build_twin("deepseek_vl_hybrid", tmp_path_factory.mktemp("hybrid"))
