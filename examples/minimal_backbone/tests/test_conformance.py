from pathlib import Path

import pytest
from flmm_minimal import SPEC
from make_tiny import make_tiny

from flmm_core.testing.suite import BackboneConformance


class TestMinimal(BackboneConformance):
    spec = SPEC

    @pytest.fixture(scope="module")
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_tiny(tmp_path_factory.mktemp("tiny"))
