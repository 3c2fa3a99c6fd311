from pathlib import Path

import pytest
from flmm_idefics3 import SPEC
from make_tiny import make_tiny

from flmm_core.testing.suite import BackboneConformance


class TestIdefics3(BackboneConformance):
    """The trained model in the package."""

    spec = SPEC


class TestRandomWeights(BackboneConformance):
    spec = SPEC

    @pytest.fixture(scope="module")
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_tiny(tmp_path_factory.mktemp("tiny"))
