from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats.refcoco import write_refcoco
from recipes.twins import build_twin


@pytest.fixture(scope="session")
def random_twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model with random weights, small images."""
    return build_twin("qwen", tmp_path_factory.mktemp("twin"), seed=3, pixels=96)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefCOCO folder of drawn scenes: 6 images of split "train"."""
    folder = tmp_path_factory.mktemp("drawn")
    return write_refcoco(folder, draw_images(6, seed=5, kinds=("plain", "relation")))
