"""docs/backbones.md: its files, written to an empty folder, are a plugin that passes the kit."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flmm_core.cli import main
from flmm_core.testing import check_skips
from flmm_core.testing.suite import BackboneConformance
from tests.docs.pages import ROOT, SHELL, blocks, commands
from tests.docs.stand_ins import arguments

PAGE = "docs/backbones.md"
FILES = {block.file: block.text for block in blocks(PAGE) if block.file}
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The page's folder, with its tiny model, as `pip install -e .` makes it known."""
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "minimal_backbone"))
    importlib.import_module("make_tiny").make_tiny("flmm_llava15/tiny")
    info = tmp_path / "flmm_llava15-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: flmm-llava15\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[flmm]\nllava15 = flmm_llava15\n")
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "flmm_llava15"]:
        del sys.modules[name]


@pytest.mark.slow
def test_from_an_empty_folder_to_a_green_kit(plugin: Path, capsys: Capture) -> None:
    code = [line for name in FILES if name.startswith("flmm_") for line in FILES[name].splitlines()]
    assert sum(1 for line in code if line.strip()) <= 25
    said = ""
    for block in blocks(PAGE):
        for words in commands(block) if block.language in SHELL else ():
            if (given := arguments(words)) is not None:
                given = ["--print-config" if word == "--dry-run" else word for word in given]
                given = ["flmm_llava15/tiny" if "llava-hf/" in word else word for word in given]
                assert main(given) == 0, words
                said = capsys.readouterr().out
        if block.language == "text":
            assert shown(block.text) - {"..."} <= shown(said), block.place
    assert Path("written/pyproject.toml").is_file()


def shown(text: str) -> set[str]:
    """Lines, without spaces and with N for every number."""
    return {re.sub(r"[\d.]*\d", "N", " ".join(line.split())) for line in text.splitlines()}


def test_the_test_class_of_the_page_is_one(plugin: Path) -> None:
    skipped = []
    for block in blocks(PAGE):
        if "BackboneConformance" in block.text and block.language == "python":
            names: dict[str, object] = {}
            exec(FILES["tests/test_conformance.py"] + block.text, names)
            kind: Any = names["TestLlava15"]
            assert issubclass(kind, BackboneConformance)
            assert kind.spec.name == "llava15"
            check_skips(kind.skip)
            skipped.append(len(kind.skip))
    assert skipped == [0, 1]
