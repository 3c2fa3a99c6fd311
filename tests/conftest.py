from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.data.drawn.writing import draw_pictures
from flmm_core.data.formats.refcoco import write_refcoco
from recipes.twins import build_twin


@pytest.fixture(scope="session")
def random_twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model with random weights, small pictures."""
    return build_twin("qwen", tmp_path_factory.mktemp("twin"), seed=3, pixels=96)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefCOCO folder of drawn scenes: 6 pictures of split "train"."""
    folder = tmp_path_factory.mktemp("drawn")
    return write_refcoco(folder, draw_pictures(6, seed=5, kinds=("plain", "relation")))
