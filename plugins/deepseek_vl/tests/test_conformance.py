from __future__ import annotations

from flmm_core.testing.suite import BackboneConformance
from flmm_deepseek_vl import SPEC


class TestDeepseekVL(BackboneConformance):
    """The tiny model that the package ships keeps every promise."""

    spec = SPEC
