from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from flmm_core import Backbone
from flmm_core.testing import load_for_checks
from flmm_llava_next import SPEC
from recipes import more_twins, twins


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, untrained."""
    return twins.build_twin("llava_next", tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The real geometry (tiles of 336, patch 14, five canvases) around a thin, untrained model."""
    folder = tmp_path_factory.mktemp("full_size")
    grids = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
    config, processor = twins.llava_next_parts(pixels=336, grids=grids)
    config.text_config.max_position_embeddings = 8192
    config.vision_config.patch_size = 14
    processor.patch_size = 14
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_for_checks(SPEC, folder)


@pytest.fixture(scope="session", params=["llava", "llava_onevision"])
def relative(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of another generation, untrained."""
    return more_twins.write_twin(request.param, tmp_path_factory.mktemp("relative"))
