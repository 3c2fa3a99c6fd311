from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.testing.suite import BackboneConformance
from flmm_llava_next import SPEC


class TestLlavaNext(BackboneConformance):
    """The tiny model that the package ships keeps every promise."""

    spec = SPEC


class TestRelatives(BackboneConformance):
    """So do LLaVA-1.5 and LLaVA-OneVision."""

    spec = SPEC

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, relative: Path) -> Path:
        return relative
