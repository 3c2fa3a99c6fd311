from pathlib import Path

import pytest
from flmm_smolvlm import SPEC
from make_tiny import make_tiny

from flmm_core.testing import load_for_checks
from flmm_core.testing.probes import CAPTION, picture
from flmm_core.testing.suite import BackboneConformance


class TestSmolVLM(BackboneConformance):
    spec = SPEC

    @pytest.fixture(scope="module")
    @classmethod
    def model(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return make_tiny(tmp_path_factory.mktemp("tiny"))


def test_the_first_smolvlm_is_an_idefics3(tmp_path: Path) -> None:
    backbone = load_for_checks(SPEC, make_tiny(tmp_path, family="Idefics3"))
    coarse, fine = backbone.prepare(picture(96, 144), CAPTION).views
    assert coarse.token_index.numel() < fine.token_index.numel()
