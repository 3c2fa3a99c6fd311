"""Good backbones: those that mutants are made of, and that no check may blame."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_core import Backbone, BackboneSpec
from flmm_core.plugins import load_backbones, load_class
from recipes.families import FAMILIES as RELEASED
from recipes.families import write_folder
from recipes.twins import PARTS, build_twin

EXAMPLES = {
    "minimal": "flmm_minimal",
    "gemma3": "flmm_gemma3",
    "idefics3": "flmm_idefics3",
}
MORE = ("qwen2_vl", "qwen3_vl")
FAMILIES = (*PARTS, "minimal")
"""Those that mutants are made of: they declare their geometry, and go on from a KV cache."""
GOOD = (*PARTS, *EXAMPLES)
OTHERS = (*MORE, *(f"auto:{name}" for name in RELEASED))


def make(family: str, folder: Path, seed: int) -> tuple[BackboneSpec, Path]:
    """A family's spec and a toy model of it with random weights, in a folder of its own."""
    target = folder / f"{family.replace(':', '-')}-{seed}"
    kind, _, released = family.partition(":")
    if family in EXAMPLES:
        if not target.exists():
            with _seeded(seed):
                _module(EXAMPLES[family], "make_tiny").make_tiny(target)
        return _module(EXAMPLES[family]).SPEC, target
    if not target.exists():
        if released:
            write_folder(released, target, seed)
        else:
            build_twin(family, target, seed)
    return load_backbones().get("qwen" if family in MORE else kind), target


def load(kind: type[Backbone], spec: BackboneSpec, model: str | Path) -> Backbone:
    """A backbone of a class, as `load_for_checks` loads it."""
    options = {"allow_unlisted": True} if spec.name == "auto" else None
    return kind.load(spec, str(model), dtype="float32", device="cpu", options=options)


def kind_of(spec: BackboneSpec) -> type[Backbone]:
    kind: type[Backbone] = load_class(spec)
    return kind


def _module(package: str, name: str = "") -> Any:
    """A package of an example, or a module beside it."""
    folder = Path(__file__).parents[3] / "examples" / f"{package.removeprefix('flmm_')}_backbone"
    if not name:
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        return importlib.import_module(package)
    spec = importlib.util.spec_from_file_location(f"{package}_{name}", folder / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Within, whatever seed is asked for is this one."""
    given = torch.manual_seed
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "manual_seed", lambda _: given(seed))
        yield
