"""The checks as a pytest class. Needs pytest; the rest of the kit does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.spec import BackboneSpec
from flmm_core.testing import check_skips, load_for_checks
from flmm_core.testing.checks import CHECKS, Check
from flmm_core.testing.promise import NotPromised


class BackboneConformance:
    """Subclass it with your spec; every check of the kit becomes a test of your class.

    Attributes:
        spec: The facts that your plugin registers.
        skip: Names of checks that your backbone cannot pass, with the reason of each.
    """

    spec: ClassVar[BackboneSpec]
    skip: ClassVar[Mapping[str, str]] = {}

    @pytest.fixture(scope="class")
    @classmethod
    def model(cls) -> str | Path:
        """The model to check: an alias or a folder. Override it, a classmethod of scope "class"."""
        return "tiny"

    @pytest.fixture(scope="class")
    @classmethod
    def backbone(cls, model: str | Path) -> Backbone:
        """The loaded backbone."""
        return load_for_checks(cls.spec, model)

    def test_skipped_checks_have_reasons(self) -> None:
        check_skips(self.skip)

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(self, check: Check, backbone: Backbone) -> None:
        if check.__name__ in self.skip:
            pytest.skip(self.skip[check.__name__])
        try:
            check(backbone)
        except NotPromised as reason:
            pytest.skip(str(reason))
