from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

from flmm_core import Backbone
from flmm_core.testing import load_for_checks
from flmm_qwen import SPEC
from recipes import twins


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tiny model, untrained."""
    return twins.build_twin("qwen", tmp_path_factory.mktemp("twin"))


@pytest.fixture(scope="session")
def full_size(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    """The real geometry (patch 14, merge 2, windows of 112) around a thin, untrained model."""
    folder = tmp_path_factory.mktemp("full_size")
    config, processor = twins.PARTS["qwen"]()
    config.text_config.max_position_embeddings = 8192
    config.vision_config.patch_size = 14
    config.vision_config.window_size = 112
    config.vision_config.fullatt_block_indexes = [2]
    processor.image_processor.patch_size = 14
    processor.image_processor.size = {"shortest_edge": 56 * 56, "longest_edge": 28 * 28 * 1280}
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return load_for_checks(SPEC, folder)


@pytest.fixture(scope="session", params=["qwen2_vl", "qwen3_vl"])
def other_generation(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A folder with a tiny model of another generation, untrained."""
    return twins.build_twin(request.param, tmp_path_factory.mktemp("generation"))


@pytest.fixture(scope="session", params=[("qwen2_vl", 14), ("qwen3_vl", 16)], ids=lambda p: p[0])
def other_full_size(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Backbone:
    """The same with patches of the published size."""
    family, patch = request.param
    folder = tmp_path_factory.mktemp("full_size")
    return load_for_checks(SPEC, twins.build_twin(family, folder, patch=patch, pixels=588))
