from pathlib import Path

import pytest
from flmm_paligemma import SPEC
from make_tiny import make_tiny

from flmm_core.testing.suite import BackboneConformance


class TestPaliGemma2(BackboneConformance):
    spec = SPEC

    @pytest.fixture(scope="module")
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_tiny(tmp_path_factory.mktemp("tiny"))


class TestPaliGemma(BackboneConformance):
    """The first one, without soft-capping and without sliding windows."""

    spec = SPEC

    @pytest.fixture(scope="module")
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_tiny(tmp_path_factory.mktemp("first"), text={"model_type": "gemma"})
