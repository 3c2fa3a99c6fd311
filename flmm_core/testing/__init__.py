"""Conformance kit for plugin authors: checks that a backbone keeps its contract.

    from flmm_core.testing import check_backbone
    check_backbone(SPEC)                  # raises AssertionError that lists all failed checks

or, as a test class with one test per check (needs pytest):

    from flmm_core.testing.suite import BackboneConformance

    class TestMyBackbone(BackboneConformance):
        spec = SPEC

A check that a backbone cannot pass is skipped by its name, with the reason:

    check_backbone(SPEC, skip={"check_repainted_spot": "the vision tower shuffles its tokens"})
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.plugins import load_class
from flmm_core.spec import BackboneSpec
from flmm_core.testing.checks import CHECKS, require

__all__ = ["CHECKS", "check_backbone", "check_skips", "load_for_checks"]


def load_for_checks(spec: BackboneSpec, model: str | Path = "tiny") -> Backbone:
    """A backbone as the checks need it: float32, on the CPU."""
    kind: type[Backbone] = load_class(spec)
    return kind.load(spec, str(model), dtype="float32", device="cpu")


def check_skips(skip: Mapping[str, str]) -> None:
    """Raise AssertionError unless `skip` maps names of checks to reasons."""
    known = [check.__name__ for check in CHECKS]
    for name, reason in skip.items():
        require(name in known, f"cannot skip {name!r}: no such check; checks: {known}")
        require(reason.strip(), f"{name} is skipped without a reason")


def check_backbone(
    spec: BackboneSpec, model: str | Path = "tiny", *, skip: Mapping[str, str] | None = None
) -> None:
    """Load a model and run every check on it, on the CPU in float32: keep it small.

    Args:
        spec: The facts that the plugin registers.
        model: An alias, a hub id or a folder.
        skip: Names of checks to skip, with the reason of each.

    Raises:
        AssertionError: Lists all failed checks, with what was expected and found.
        FlmmError: The model cannot be loaded.
    """
    skip = skip or {}
    check_skips(skip)
    backbone = load_for_checks(spec, model)
    failed: dict[str, Exception] = {}
    for check in CHECKS:
        if check.__name__ not in skip:
            try:
                check(backbone)
            except Exception as error:  # a check that crashes has failed; the others still run
                kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                failed[f"{check.__name__}: {kind}{error}"] = error
    if failed:
        report = "\n".join([f"Backbone {spec.name!r} breaks its contract.", *failed])
        raise AssertionError(report) from next(iter(failed.values()))
