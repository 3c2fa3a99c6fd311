"""uv.lock is of this pyproject.toml; `uv lock --check` says the same where uv is installed."""

from __future__ import annotations

import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK: dict[str, Any] = tomllib.loads((ROOT / "uv.lock").read_text())
AGAIN = "run: uv lock"


def locked(name: str) -> list[dict[str, Any]]:
    """A package can be locked in several versions, for different versions of Python."""
    return [package for package in LOCK["package"] if package["name"] == name]


def key(needed: Requirement) -> tuple[str, str, str, str]:
    name = canonicalize_name(needed.name)
    return name, ",".join(sorted(needed.extras)), str(needed.specifier), str(needed.marker or "")


def declared() -> Counter[tuple[str, str, str, str]]:
    needed = [Requirement(text) for text in PROJECT["dependencies"]]
    for extra, texts in PROJECT["optional-dependencies"].items():
        for text in texts:
            one = Requirement(text)
            own = f"({one.marker}) and " if one.marker else ""
            one.marker = Marker(f"{own}extra == '{extra}'")
            needed.append(one)
    return Counter(key(one) for one in needed)


def test_it_has_the_requirements_of_the_project() -> None:
    (own,) = locked("flmm")
    there: Counter[tuple[str, str, str, str]] = Counter()
    for one in own["metadata"]["requires-dist"]:
        extras = f"[{','.join(one['extras'])}]" if one.get("extras") else ""
        text = f"{one['name']}{extras}{one.get('specifier', '')}"
        there[key(Requirement(f"{text} ; {one['marker']}" if "marker" in one else text))] += 1
    wanted = declared()
    assert (wanted - there, there - wanted) == (Counter(), Counter()), AGAIN
    assert own["version"] == PROJECT["version"], AGAIN
    assert set(own["metadata"]["provides-extras"]) == set(PROJECT["optional-dependencies"]), AGAIN
    assert LOCK["requires-python"] == PROJECT["requires-python"], AGAIN


def test_its_versions_are_within_the_bounds() -> None:
    for name, _, specifier, _ in declared():
        if name == "flmm":
            continue
        packages = locked(name)
        assert packages, f"{name}: {AGAIN}"
        for package in packages:
            assert SpecifierSet(specifier).contains(package["version"], prereleases=True), package


def test_it_is_complete() -> None:
    """Each package that another needs is there, in files with a digest."""
    names = {package["name"] for package in LOCK["package"]}
    for package in LOCK["package"]:
        for needed in package.get("dependencies", ()):
            assert needed["name"] in names, (package["name"], needed)
        if "registry" in package["source"]:
            files = [*package.get("wheels", ()), *filter(None, [package.get("sdist")])]
            assert files, package["name"]
            assert all(file["hash"].startswith("sha256:") for file in files), package["name"]


def test_another_bound_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound, a package or an extra that pyproject.toml changes alone."""
    bounds = [text.replace("torch>=2.9", "torch>=99") for text in PROJECT["dependencies"]]
    changes: list[dict[str, Any]] = [
        {"dependencies": bounds},
        {"dependencies": PROJECT["dependencies"][1:]},
        {"dependencies": [*PROJECT["dependencies"], "attrs"]},
        {"optional-dependencies": {**PROJECT["optional-dependencies"], "more": []}},
        {"requires-python": ">=3.12"},
    ]
    for change in changes:
        with monkeypatch.context() as changed:
            for name, value in change.items():
                changed.setitem(PROJECT, name, value)
            with pytest.raises(AssertionError, match=AGAIN):
                test_it_has_the_requirements_of_the_project()
