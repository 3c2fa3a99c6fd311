"""Conformance kit for plugin authors: does a backbone keep every promise of the contract?

    from flmm_core.testing import check_backbone
    check_backbone(SPEC)                  # raises AssertionError that lists all broken promises

or, as a test class with one test a promise (needs pytest):

    from flmm_core.testing.suite import BackboneConformance

    class TestMyBackbone(BackboneConformance):
        spec = SPEC

A promise that cannot be kept is excused by the name of its check, with the reason:

    check_backbone(SPEC, excuses={"check_repainted_spot": "the vision tower shuffles its tokens"})
"""

from flmm_core.testing.checks import CHECKS, Check
from flmm_core.testing.run import Outcome, check_backbone, check_excuses, load_for_checks

__all__ = ["CHECKS", "Check", "Outcome", "check_backbone", "check_excuses", "load_for_checks"]
