"""The conformance kit passes good backbones, and sees the faults of mutants."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from flmm_core import plugins
from flmm_core.testing import CHECKS, check_backbone, check_skips
from flmm_core.testing.promise import BrokenPromiseError
from tests.testing.mutants import MUTANTS, good

ROOT = Path(__file__).parents[2]
TEMPLATE = ROOT / "examples" / "minimal_backbone"
BY_NAME = {check.__name__: check for check in CHECKS}
NO_WARNING = "error::pytest.PytestWarning"
"""What pytest deprecates would be an error in the tests of plugins with its next version."""
BUILT_IN = ("qwen", "deepseek_vl", "llava_next")


def cases() -> Iterator[tuple[str, str]]:
    """(mutant, family): one for each check, or with FLMM_MUTANTS=all each in each family."""
    if os.environ.get("FLMM_MUTANTS") == "all":
        for name, fault in MUTANTS.items():
            yield from ((name, family) for family in fault.families or good.FAMILIES)
        return
    for number, check in enumerate(BY_NAME):
        of_check = [name for name, fault in MUTANTS.items() if fault.check == check]
        name = of_check[number % len(of_check)]
        families = MUTANTS[name].families or BUILT_IN
        yield name, families[number % len(families)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("good")


def test_the_template_keeps_every_promise(folder: Path) -> None:
    check_backbone(*good.make("minimal", folder, 0))


@pytest.mark.slow
def test_the_template_tests_itself_wherever_it_is_copied(tmp_path: Path) -> None:
    copy = shutil.copytree(TEMPLATE, tmp_path / "copy", ignore=shutil.ignore_patterns("__pyc*"))
    path = os.pathsep.join(filter(None, sys.path))
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", NO_WARNING],
        cwd=copy,
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert f"{len(CHECKS) + 1} passed" in ran.stdout


def test_the_template_is_found_as_a_plugin(folder: Path) -> None:
    spec, _ = good.make("minimal", folder, 0)
    entry: Any = SimpleNamespace(name="minimal", value="flmm_minimal", dist=None)
    entry.load = lambda: sys.modules["flmm_minimal"]
    registry = plugins.load_backbones([entry])
    assert registry.get("minimal") is spec
    assert not registry.failures


def test_every_check_is_meant_for_mutants() -> None:
    assert {fault.check for fault in MUTANTS.values()} == set(BY_NAME)
    assert len(MUTANTS) >= 90


@pytest.mark.parametrize(("name", "family"), cases(), ids=lambda value: value.replace(" ", "-"))
def test_a_mutant_is_caught_by_the_check_that_is_meant_for_it(
    folder: Path, name: str, family: str
) -> None:
    spec, model = good.make(family, folder, 0)
    fault = MUTANTS[name]
    backbone = good.load(fault.of(good.kind_of(spec)), spec, model)
    with pytest.raises(BrokenPromiseError) as caught:
        BY_NAME[fault.check](backbone)
    assert caught.value.what
    assert caught.value.expected != caught.value.found


def test_all_broken_promises_are_listed_and_a_crash_is_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, tiny = good.make("minimal", folder, 0)
    monkeypatch.setattr(good.kind_of(spec), "views", lambda *_: 1 / 0)
    with pytest.raises(AssertionError) as caught:
        check_backbone(spec, tiny)
    report = str(caught.value)
    assert report.startswith("Backbone 'minimal' breaks its contract.\n")
    blamed = "The plugin's own code fails: tests.testing.test_kit:"
    assert f"\ncheck_pixels: image of 144 x 96: expected a sample, found {blamed}" in report
    assert f"\ncheck_repainted_spot: expected no error, found RunError: {blamed}" in report
    assert "\nZeroDivisionError: division by zero\n" in report
    assert "check_spec" not in report.splitlines()[1]


def test_a_skipped_check_is_not_run(folder: Path) -> None:
    spec, tiny = good.make("minimal", folder, 0)
    silent = dataclasses.replace(spec, summary="")
    others = dict.fromkeys(set(BY_NAME) - {"check_spec"}, "tested elsewhere")
    with pytest.raises(AssertionError) as caught:
        check_backbone(silent, tiny, skip=others)
    assert str(caught.value) == (
        "Backbone 'minimal' breaks its contract.\n"
        "check_spec: summary: expected one line, found nothing"
    )
    check_backbone(silent, tiny, skip={**others, "check_spec": "nobody lists it"})


def test_a_skip_needs_a_check_and_a_reason() -> None:
    with pytest.raises(AssertionError, match="'check_taste': no such check"):
        check_skips({"check_taste": "subjective"})
    with pytest.raises(AssertionError, match="check_answers is skipped without a reason"):
        check_skips({"check_answers": " "})


def test_the_page_lists_every_check_with_its_promise() -> None:
    page = (ROOT / "docs" / "conformance.md").read_text()
    listed = re.findall(r"^\| `(check_\w+)` \| (.+) \|$", page, re.M)
    assert listed == [(c.__name__, (c.__doc__ or "").partition("\n")[0]) for c in CHECKS]
