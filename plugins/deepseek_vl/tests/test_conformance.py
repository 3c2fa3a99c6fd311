from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.testing.suite import BackboneConformance
from flmm_deepseek_vl import SPEC


class TestDeepseekVL(BackboneConformance):
    """The tiny model that the package ships keeps every promise."""

    spec = SPEC


class TestHybrid(BackboneConformance):
    """So does the kind of the 7B models."""

    spec = SPEC

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, hybrid: Path) -> Path:
        return hybrid
