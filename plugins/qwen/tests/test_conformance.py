from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.testing.suite import BackboneConformance
from flmm_qwen import SPEC


class TestQwen(BackboneConformance):
    """The tiny model that the package ships keeps every promise."""

    spec = SPEC


class TestOtherGenerations(BackboneConformance):
    """So do Qwen2-VL and Qwen3-VL."""

    spec = SPEC

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls, other_generation: Path) -> Path:
        return other_generation
