from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent

import pytest

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from recipes.twins import build_twin


@pytest.fixture(autouse=True)
def warnings_reach_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command run in this process before has pointed the package's log at stderr only."""
    log = logging.getLogger("flmm_core")
    monkeypatch.setattr(log, "propagate", True)
    monkeypatch.setattr(log, "handlers", [])


@pytest.fixture(scope="session")
def random_twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model with random weights, small images."""
    return build_twin("qwen", tmp_path_factory.mktemp("twin"), seed=3, pixels=96)


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A RefCOCO folder of drawn scenes: 6 images of split "train"."""
    folder = tmp_path_factory.mktemp("drawn")
    return FORMATS["refcoco"].write(folder, draw_images(6, seed=5, kinds=("plain", "relation")))


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """install(distribution, version, module=source, ...): a distribution of plugin modules."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)

    def make(distribution: str, version: str = "0.1", **sources: str) -> None:
        info = tmp_path / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir()
        metadata = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(metadata)
        lines = ["[flmm]", *(f"{module} = {module}" for module in sources)]
        (info / "entry_points.txt").write_text("\n".join(lines))
        for module, source in sources.items():
            (tmp_path / f"{module}.py").write_text(dedent(source))

    yield make
    for module in set(sys.modules) - before:
        if (tmp_path / f"{module}.py").exists():
            del sys.modules[module]
