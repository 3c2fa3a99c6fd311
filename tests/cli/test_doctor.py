"""`flmm doctor`: what it tells, what is a problem, and that nothing keeps it from speaking."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import transformers

from flmm_core.cli import diagnosis, main
from flmm_core.data.drawn.splits import SPLITS
from flmm_core.plugins import load_backbones

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

KEYS = {
    "": "version flmm python machine torch devices packages optional plugins hub folders data"
    " problems",
    "python": "version executable system",
    "machine": "cores usable_cores memory_bytes available_bytes",
    "torch": "version cuda error",
    "devices": "name title memory_bytes free_bytes",
    "packages": "name version needs fits",
    "optional": "name version for",
    "plugins": "backbones refiners phrase_finders not_loaded",
    "hub": "endpoint offline token reachable error",
    "folders": "name path exists bytes free_bytes writable",
    "data": "source path drawn",
}
"""What version 1 of the JSON object has; a key that goes, or changes its meaning, is version 2."""


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def no_probe(monkeypatch: Patch) -> None:
    """Torch is not asked: it takes seconds to import."""
    monkeypatch.setattr(diagnosis, "PROBE", "print('{}')")


def told(capsys: Capture, code: int = 0) -> dict[str, Any]:
    assert main(["doctor", "--json"]) == code
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def test_a_sound_installation_has_no_problems(capsys: Capture, monkeypatch: Patch) -> None:
    found = told(capsys)
    assert found["version"] == 1
    for part, keys in KEYS.items():
        value = found[part] if part else found
        for each in value if isinstance(value, list) else [value]:
            assert " ".join(each) == keys, part
    assert found["problems"] == []
    assert found["torch"] == {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "error": None,
    }
    gpus = torch.cuda.device_count() + torch.backends.mps.is_available()
    assert len(found["devices"]) == 1 + gpus
    assert found["machine"]["memory_bytes"] == psutil.virtual_memory().total
    versions = {package["name"]: package["version"] for package in found["packages"]}
    assert versions["transformers"] == transformers.__version__
    names = [plugin["name"] for plugin in found["plugins"]["backbones"]]
    assert names == [*load_backbones().specs]
    assert [each["drawn"] for each in found["data"]] == [False] * len(SPLITS)
    assert not Path("cache").exists()
    monkeypatch.setattr("flmm_core.cli.doctor.diagnose", lambda: found)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\nNo problems were found.\n")
    assert f"{torch.__version__}" in text


@pytest.mark.parametrize(
    ("torch_is", "error"),
    [
        ("raise ImportError('libcudart.so.13: cannot open')", "ImportError: libcudart.so.13: "),
        ("import os; os.abort()", "the process ended with status -6."),
    ],
)
def test_it_works_without_torch_and_tells_no_token(
    torch_is: str, error: str, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text(torch_is)
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    environment = {
        **os.environ,
        "PYTHONPATH": search,
        "HF_HUB_OFFLINE": "0",
        "HF_ENDPOINT": "http://127.0.0.1:9",  # nothing listens there
        "HF_TOKEN": "hf_secret",
    }
    command = [sys.executable, "-m", "flmm_core", "doctor", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 1, run.stderr
    found = json.loads(run.stdout)
    assert found["torch"]["error"].startswith(error)
    (problem,) = found["problems"]
    assert problem.startswith(f"torch does not work: {error}")
    assert "pip install" in problem
    assert found["devices"] == []
    assert found["hub"]["token"] is True
    assert found["hub"]["reachable"] is False
    assert "refused" in found["hub"]["error"]
    assert "hf_secret" not in run.stdout + run.stderr


@pytest.mark.usefixtures("no_probe")
def test_what_keeps_flmm_from_working_is_a_problem(
    install: Callable[..., None], capsys: Capture, monkeypatch: Patch
) -> None:
    install("flmm-broken", broken="import no_such_package")
    Path("file").write_text("")
    monkeypatch.setenv("FLMM_CACHE", "file/cache")
    needs = ["numpy>=99", "no-such-package>=1", "pyarrow>=17; extra == 'parquet'", "click>=8"]
    monkeypatch.setattr(diagnosis.metadata, "requires", lambda name: needs)
    problems = told(capsys, code=1)["problems"]
    assert len(problems) == 4
    for part in (
        "numpy is ",
        'pip install "numpy>=99"',
        "no-such-package is missing; flmm needs no-such-package>=1.",
        "Plugin flmm-broken 0.1 does not load: ModuleNotFoundError",
        "'file/cache', cannot be used: Not a directory",
    ):
        assert part in "\n".join(problems)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.count("\nProblem: ") == 4


@pytest.mark.usefixtures("no_probe")
def test_a_part_that_fails_keeps_no_other_from_speaking(
    capsys: Capture, monkeypatch: Patch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("no /proc here")

    for name in ("_machine", "_packages", "_plugins", "_hub", "_folders", "_drawn"):
        monkeypatch.setattr(diagnosis, name, broken)
    found = told(capsys, code=1)
    assert len(found["problems"]) == 6
    assert found["problems"][0] == ("The machine cannot be examined: RuntimeError: no /proc here")
    assert main(["doctor"]) == 1
    assert found["flmm"] in capsys.readouterr().out


def test_a_folder_is_measured_in_its_bytes(tmp_path: Path, monkeypatch: Patch) -> None:
    (tmp_path / "a").mkdir()
    for name in ("x", "a/y"):
        (tmp_path / name).write_bytes(bytes(1000))
    (tmp_path / "link").symlink_to(tmp_path / "x")
    assert 2000 < diagnosis._size(tmp_path) < 2200  # type: ignore[operator]
    monkeypatch.setattr(diagnosis, "WALK_SECONDS", -1)
    assert diagnosis._size(tmp_path) is None
