"""Run all checks on one backbone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.plugins import load_class
from flmm_core.spec import BackboneSpec
from flmm_core.testing.checks import CHECKS, require

NO_EXCUSES: Mapping[str, str] = {}


@dataclass(frozen=True)
class Outcome:
    """How one check ended without failing.

    Attributes:
        check: Its name.
        excuse: Why it was not run, or an empty string.
    """

    check: str
    excuse: str = ""


def load_for_checks(spec: BackboneSpec, model: str | Path = "tiny") -> Backbone:
    """A backbone as the checks need it: float32, on the CPU."""
    return load_class(spec).load(spec, str(model), dtype="float32", device="cpu")


def check_excuses(excuses: Mapping[str, str]) -> None:
    """Every excuse names a check and gives a reason; AssertionError otherwise."""
    known = [check.__name__ for check in CHECKS]
    for name, reason in excuses.items():
        require(name in known, f"an excuse for {name!r}, which is no check; checks: {known}")
        require(reason.strip(), f"the excuse for {name} gives no reason")


def check_backbone(
    spec: BackboneSpec, model: str | Path = "tiny", *, excuses: Mapping[str, str] = NO_EXCUSES
) -> list[Outcome]:
    """Load a model and run every check on it.

    Args:
        spec: The facts that the plugin registers.
        model: An alias, a hub id or a folder; small, for it runs on the CPU in float32.
        excuses: Reason by name of a check that is not to be run.

    Returns:
        One outcome a check.

    Raises:
        AssertionError: All broken promises, with what was expected and found.
        FlmmError: The model cannot be loaded.
    """
    check_excuses(excuses)
    backbone = load_for_checks(spec, model)
    outcomes: list[Outcome] = []
    broken: dict[str, Exception] = {}
    for check in CHECKS:
        name = check.__name__
        if name not in excuses:
            try:
                check(backbone)
            except Exception as error:  # one that crashes is broken too; the others still run
                kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
                broken[f"{name}: {kind}{error}"] = error
        outcomes.append(Outcome(name, excuses.get(name, "")))
    if broken:
        report = "\n".join([f"Backbone {spec.name!r} breaks its contract.", *broken])
        raise AssertionError(report) from next(iter(broken.values()))
    return outcomes
