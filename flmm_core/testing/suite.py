"""The checks as a pytest class. Needs pytest; the rest of the kit does not."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pytest

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.spec import BackboneSpec
from flmm_core.testing.checks import CHECKS, Check
from flmm_core.testing.run import NO_EXCUSES, check_excuses, load_for_checks


class BackboneConformance:
    """Subclass it with your spec; every check of the kit becomes a test of your class.

    Attributes:
        spec: The facts that your plugin registers.
        excuses: Reason by name of a check that your backbone cannot pass.
    """

    spec: ClassVar[BackboneSpec]
    excuses: ClassVar[Mapping[str, str]] = NO_EXCUSES
    _loaded: ClassVar[dict[str, Backbone]] = {}

    @pytest.fixture
    def model(self) -> str | Path:
        """Which model to check: an alias, or a folder. Override it as a fixture."""
        return "tiny"

    @pytest.fixture
    def backbone(self, model: str | Path) -> Backbone:
        """The loaded backbone, once a class."""
        cls = type(self)
        if "_loaded" not in cls.__dict__:
            cls._loaded = {}
        if str(model) not in cls._loaded:
            cls._loaded[str(model)] = load_for_checks(cls.spec, model)
        return cls._loaded[str(model)]

    def test_excuses_have_reasons(self) -> None:
        check_excuses(self.excuses)

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_conformance(self, check: Check, backbone: Backbone) -> None:
        if check.__name__ in self.excuses:
            pytest.skip(self.excuses[check.__name__])
        check(backbone)
