from __future__ import annotations

from flmm_core.testing.suite import BackboneConformance
from flmm_llava_next import SPEC


class TestLlavaNext(BackboneConformance):
    """The tiny model that the package ships keeps every promise."""

    spec = SPEC
