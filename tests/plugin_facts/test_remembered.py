"""What a plugin offers is found out once for each version, and again when anything changes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flmm_core.plugin_facts import remembered
from flmm_core.plugins import Registry, load_backbones
from flmm_core.spec import BackboneSpec
from tests.plugin_facts.hostile import good

Install = Callable[..., None]


@pytest.fixture
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FLMM_CACHE", str(folder))
    return folder / "plugins"


@pytest.fixture
def imports(install: Install, tmp_path_factory: pytest.TempPathFactory) -> Callable[[], int]:
    """Install a plugin; returns how often it was imported so far."""
    log = tmp_path_factory.mktemp("log") / "imports"
    install("counted", counted=f"open({str(log)!r}, 'a').write('x')\n" + good("counted"))
    return lambda: len(log.read_text()) if log.exists() else 0


def fresh() -> Registry[BackboneSpec]:
    """The registry of a new process."""
    remembered._kept.clear()
    return load_backbones()


def test_a_plugin_is_examined_once(cache: Path, imports: Callable[[], int]) -> None:
    assert "counted" in fresh().specs
    assert imports() == 1
    assert fresh().specs["counted"].summary == "A summary"
    assert imports() == 1
    assert len(list(cache.iterdir())) == 1
    assert "counted" not in sys.modules
    fresh().get("counted")
    assert imports() == 2
    assert "counted" in sys.modules


def test_it_is_examined_again_when_it_changes(
    cache: Path, imports: Callable[[], int], tmp_path: Path
) -> None:
    assert "counted" in fresh().specs
    module = tmp_path / "counted.py"
    module.write_text(module.read_text().replace("A summary", "Another"))
    assert fresh().specs["counted"].summary == "Another"
    os.utime(module, (1, 1))
    assert "counted" in fresh().specs
    assert imports() == 3
    info = tmp_path / "counted-0.1.dist-info"
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: counted\nVersion: 0.2\n")
    assert fresh().plugins["counted"].label == "counted 0.2"
    assert imports() == 4


def test_it_is_examined_again_when_anything_is_installed(
    cache: Path, imports: Callable[[], int], environment: Path
) -> None:
    assert "counted" in fresh().specs
    (environment / "another-1.0.dist-info").mkdir()
    assert "counted" in fresh().specs
    assert imports() == 2
    assert "counted" in fresh().specs
    assert imports() == 2


def test_a_missing_package_that_is_now_there_is_noticed(
    cache: Path, install: Install, tmp_path: Path
) -> None:
    install("needs", needs="import zz_needed\n" + good("needs"))
    assert "needs" not in fresh().specs
    (tmp_path / "zz_needed.py").touch()
    assert "needs" in fresh().specs


def test_faults_are_forgotten_after_a_while(
    cache: Path, install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = tmp_path / "sub/flag"
    flag.parent.mkdir()
    install("needs", needs=f"open({str(flag)!r})\n" + good("needs"))
    assert "needs" not in fresh().specs
    flag.touch()
    assert "needs" not in fresh().specs
    now = remembered.time.time()
    monkeypatch.setattr(remembered.time, "time", lambda: now + 601)
    assert "needs" in fresh().specs


@pytest.mark.usefixtures("cache")
def test_a_damaged_file_is_written_again(imports: Callable[[], int]) -> None:
    assert "counted" in fresh().specs
    whole = remembered._file().read_bytes()
    other = whole.replace(b"A summary", b"B summary")
    for number, damage in enumerate((b"", b"[]", b'{"a": {}}', whole[:-9], b"\xff", other)):
        remembered._file().write_bytes(damage)
        remembered._kept.clear()
        assert not remembered._read(), damage
        if number < 2:
            assert fresh().specs["counted"].summary == "A summary"
            assert imports() == number + 2
            assert remembered._file().read_bytes() != damage


def test_without_a_folder_it_is_examined_once_for_each_process(
    tmp_path: Path, imports: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "file"))
    assert "counted" in fresh().specs
    assert "counted" in load_backbones().specs
    assert imports() == 1
    assert "counted" in fresh().specs
    assert imports() == 2


@pytest.mark.multiprocess
@pytest.mark.usefixtures("imports")
def test_processes_that_start_together_agree(cache: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    runs = [
        subprocess.Popen(
            [sys.executable, "-m", "flmm_core", "backbones", "list"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
        )
        for _ in range(4)
    ]
    shown = {run.communicate(timeout=60)[0] for run in runs}
    assert len(shown) == 1
    assert "counted" in shown.pop()
    assert remembered._read()
    assert [path.suffix for path in cache.iterdir()] == [".json"]


OPTIONS = """
from flmm_core import BackboneOptions, BackboneSpec, ModelInfo, hookimpl

class Options(BackboneOptions):
    size: int = 3

@hookimpl
def flmm_backbones():
    models = {"tiny": ModelInfo("a:b", "MIT")}
    return [BackboneSpec("sized", "somewhere:Class", "", models, options=Options)]
"""


def test_options_are_listed_from_memory_and_checked_by_the_plugin(
    cache: Path, install: Install
) -> None:
    install("sized", sized=OPTIONS)
    registry = fresh()
    assert registry.schema("sized") == {"size": {"default": 3, "title": "Size", "type": "integer"}}
    assert "sized" not in sys.modules
    assert registry.get("sized").options().size == 3  # type: ignore[attr-defined]
    assert registry.specs["sized"].options is sys.modules["sized"].Options


def test_it_is_not_examined_again_for_its_bytecode(
    cache: Path, imports: Callable[[], int], tmp_path: Path
) -> None:
    assert "counted" in fresh().specs
    bytecode = tmp_path / "__pycache__"
    bytecode.mkdir(exist_ok=True)
    (bytecode / "other.pyc").touch()
    assert "counted" in fresh().specs
    assert imports() == 1
