from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from flmm_core import Backbone
from flmm_core.testing import load_for_checks
from flmm_deepseek_vl import SPEC
from recipes import more_twins, twins


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, untrained."""
    return twins.build_twin("deepseek_vl", tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The real geometry (384 pixels, patch 16) around a thin, untrained model."""
    folder = tmp_path_factory.mktemp("full_size")
    config, processor = twins.deepseek_vl_parts(pixels=384)
    config.vision_config.patch_size = 16
    processor.num_image_tokens = 576
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_for_checks(SPEC, folder)


@pytest.fixture(scope="session")
def hybrid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model of the hybrid kind, untrained."""
    return more_twins.write_twin("deepseek_vl_hybrid", tmp_path_factory.mktemp("hybrid"))
