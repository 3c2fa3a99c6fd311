"""Conformance kit for plugin authors: checks that a backbone keeps its contract.

    from flmm_core.testing import check_backbone
    check_backbone(SPEC)                  # raises AssertionError that lists all failed checks

or, as a test class with one test per check (needs pytest):

    from flmm_core.testing.suite import BackboneConformance

    class TestMyBackbone(BackboneConformance):
        spec = SPEC

`flmm backbones check NAME` runs the same. A check that a backbone cannot pass is skipped by its
name, with the reason:

    check_backbone(SPEC, skip={"check_repainted_spot": "the vision tower shuffles its tokens"})
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.plugins import load_class
from flmm_core.spec import BackboneSpec
from flmm_core.testing.checks import CHECKS
from flmm_core.testing.probes import other_images
from flmm_core.testing.promise import BrokenPromiseError, NotPromised

__all__ = ["CHECKS", "Outcome", "check_backbone", "check_skips", "load_for_checks", "run_checks"]


@dataclass(frozen=True)
class Outcome:
    """How one check went.

    Attributes:
        check: Its name.
        promise: What it checks, in one sentence.
        result: "not promised" if the backbone does not declare what is checked.
        reason: Why it was skipped or is not promised; for "failed", what was examined, if known.
        expected: For "failed"; so is `found`.
        seconds: By the clock.
    """

    check: str
    promise: str
    result: Literal["ok", "failed", "skipped", "not promised"]
    reason: str = ""
    expected: str = ""
    found: str = ""
    seconds: float = 0.0
    error: Exception | None = None

    @property
    def problem(self) -> str:
        """What is wrong, in one sentence; empty if nothing is."""
        if self.result != "failed":
            return ""
        where = f"{self.reason}: " if self.reason else ""
        return f"{where}expected {self.expected}, found {self.found}"


def load_for_checks(
    spec: BackboneSpec, model: str | Path = "tiny", options: Mapping[str, Any] | None = None
) -> Backbone:
    """A backbone as the checks need it: float32, on the CPU; `options` are the plugin's own."""
    kind: type[Backbone] = load_class(spec)
    return kind.load(spec, str(model), dtype="float32", device="cpu", options=options)


def check_skips(skip: Mapping[str, str]) -> None:
    """Raise AssertionError unless `skip` maps names of checks to reasons."""
    known = [check.__name__ for check in CHECKS]
    for name, reason in skip.items():
        if name not in known:
            raise AssertionError(f"cannot skip {name!r}: no such check; checks: {known}")
        if not reason.strip():
            raise AssertionError(f"{name} is skipped without a reason")


def run_checks(
    backbone: Backbone, skip: Mapping[str, str] | None = None, *, seed: int = 0
) -> Iterator[Outcome]:
    """Run every check on a loaded backbone, one by one; a check that crashes has failed.

    Args:
        skip: Names of checks to skip, with the reason of each.
        seed: Another one gives other test images.

    Raises:
        AssertionError: A name is unknown, or a reason is missing.
    """
    skip = skip or {}
    check_skips(skip)
    for check in CHECKS:
        name, promise = check.__name__, (check.__doc__ or "").partition("\n")[0]
        if name in skip:
            yield Outcome(name, promise, "skipped", skip[name])
            continue
        start = perf_counter()
        try:
            with other_images(seed):
                check(backbone)
        except NotPromised as reason:
            yield Outcome(name, promise, "not promised", str(reason))
        except BrokenPromiseError as broken:
            said = broken.what, broken.expected, broken.found
            yield Outcome(name, promise, "failed", *said, perf_counter() - start, broken)
        except Exception as error:  # the others still run
            found = f"{type(error).__name__}: {error}"
            said = "", "no error", found
            yield Outcome(name, promise, "failed", *said, perf_counter() - start, error)
        else:
            yield Outcome(name, promise, "ok", seconds=perf_counter() - start)


def check_backbone(
    spec: BackboneSpec, model: str | Path = "tiny", *, skip: Mapping[str, str] | None = None
) -> None:
    """Load a model and run every check on it, on the CPU in float32: keep it small.

    Args:
        spec: The facts that the plugin registers.
        model: An alias, a hub id or a folder. The kit loads it twice, so it takes twice its memory.
        skip: Names of checks to skip, with the reason of each.

    Raises:
        AssertionError: Lists all failed checks, with what was expected and found.
        FlmmError: The model cannot be loaded.
    """
    check_skips(skip or {})
    failed = [one for one in run_checks(load_for_checks(spec, model), skip) if one.problem]
    if failed:
        report = [f"{one.check}: {one.problem}" for one in failed]
        raise AssertionError(
            "\n".join([f"Backbone {spec.name!r} breaks its contract.", *report])
        ) from failed[0].error
