"""`flmm backbones new` writes a package whose own tests pass, or says what is missing."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from flmm_core import Requirements
from flmm_core.cli import main
from flmm_core.pipeline.backbone.geometry.measured_views import GeometryRefused, MeasuredGeometry
from recipes.families import write_folder
from tests.examples import example
from tests.testing.test_kit import NO_WARNING

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of a family that no installed backbone names."""
    folder: Path = example("idefics3").make_tiny(tmp_path_factory.mktemp("model"))
    return folder


@pytest.fixture(scope="module")
def package(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("new") / "package"
    arguments = ["--model", str(model), "--output", str(folder)]
    assert main(["backbones", "new", "zz_try", *arguments]) == 0
    return folder


def run(package: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run python with the package installed as pip would: its metadata, and itself on the path."""
    project = tomllib.loads((package / "pyproject.toml").read_text())["project"]
    info = package / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(exist_ok=True)
    name = f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n"
    (info / "METADATA").write_text(name)
    lines = [f"{key} = {value}" for key, value in project["entry-points"]["flmm"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[flmm]", *lines]))
    path = os.pathsep.join([str(package), *filter(None, sys.path)])
    return subprocess.run(
        [sys.executable, "-m", *command],
        cwd=package,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


def test_what_is_written_is_what_was_measured(package: Path) -> None:
    backbone = (package / "flmm_zz_try/backbone.py").read_text()
    assert "class ZzTryBackbone(Backbone):" in backbone
    assert 'model_types = ("idefics3",)' in backbone
    assert 'processor_types = ("Idefics3Processor",)' in backbone
    assert 'image_token = "<image>"' in backbone
    written = [path for path in package.rglob("*.py") if "tests" not in path.parts]
    lines = [line for path in written for line in path.read_text().splitlines()]
    assert sum(1 for line in lines if line.strip()) <= 25
    shown = run(package, "flmm_core", "backbones", "show", "zz_try", "--json")
    facts = json.loads(shown.stdout)
    assert facts["plugin"] == "flmm-zz-try 0.1.0"
    assert facts["summary"] == "idefics3: 2 views (coarse, fine), measured"


def test_image_tokens_that_attend_to_later_ones_are_declared(package: Path, tmp_path: Path) -> None:
    assert "Requirements" not in (package / "flmm_zz_try/__init__.py").read_text()
    assert "attend to later ones | no |" in (package / "README.md").read_text()
    model = example("gemma3").make_tiny(tmp_path / "model")
    arguments = ["--model", str(model), "--output", str(tmp_path / "new")]
    assert main(["backbones", "new", "zz_both_ways", *arguments]) == 0
    written = runpy.run_path(str(tmp_path / "new/flmm_zz_both_ways/__init__.py"))
    assert written["SPEC"].requirements == Requirements(bidirectional_image=True)


def test_sizes_that_cannot_be_measured_are_named(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    measured = MeasuredGeometry.at

    def at(geometry: MeasuredGeometry, image_hw: tuple[int, int]) -> Any:
        if image_hw == (1080, 1920):
            raise GeometryRefused("It cannot be measured.", found="It takes too long.")
        return measured(geometry, image_hw)

    monkeypatch.setattr(MeasuredGeometry, "at", at)
    arguments = ["--model", str(model), "--output", str(tmp_path / "new")]
    assert main(["backbones", "new", "zz_large", *arguments]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Images of 1920 x 1080 pixels will be refused: It takes too long."
    assert len(said) == 3


@pytest.mark.slow
@pytest.mark.multiprocess
def test_its_own_tests_pass(package: Path) -> None:
    tests = run(package, "pytest", "-q", "-p", "no:cacheprovider", "-W", NO_WARNING)
    assert tests.returncode == 0, tests.stdout[-5000:]
    assert "failed" not in tests.stdout.splitlines()[-1]
    for command in (["check"], ["format", "--check"]):
        style = run(package, "ruff", *command, "--isolated", "--line-length", "100", ".")
        assert style.returncode == 0, style.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "qwen",
            "flmm: A backbone cannot be named 'qwen'.\nThere is one already, from flmm",
        ),
        ("My-Model", "flmm: A backbone cannot be named 'My-Model'.\nA name consists of a-z, 0-9"),
        ("7b", "flmm: A backbone cannot be named '7b'.\nA name consists of a-z, 0-9"),
        ("../x", "flmm: A backbone cannot be named '../x'.\nA name consists of a-z, 0-9"),
        ("", "flmm: A backbone cannot be named ''.\nA name consists of a-z, 0-9"),
    ],
)
def test_names_that_cannot_be_are_refused(
    name: str, message: str, tmp_path: Path, capsys: Capture
) -> None:
    output = tmp_path / "out"
    arguments = ["--model", str(tmp_path), "--output", str(output)]
    assert main(["backbones", "new", name, *arguments]) == 2
    assert capsys.readouterr().err.startswith(message)
    assert not output.exists()


def test_a_package_that_is_installed_is_not_shadowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    (tmp_path / "flmm_zz_there.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["backbones", "new", "zz_there", "--model", "a/b"]) == 2
    assert "A package 'flmm_zz_there' is installed." in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["folder", "file", "link"])
def test_nothing_is_overwritten(kind: str, model: Path, tmp_path: Path, capsys: Capture) -> None:
    output = tmp_path / "out"
    if kind == "folder":
        output.mkdir()
    elif kind == "file":
        output.write_text("mine")
    else:
        output.symlink_to(tmp_path / "nowhere")
    arguments = ["--model", str(model), "--output", str(output)]
    assert main(["backbones", "new", "zz_again", *arguments]) == 2
    assert f"The folder '{output}' exists.\n" in capsys.readouterr().err
    assert [*tmp_path.iterdir()] == [output]
    assert kind != "file" or output.read_text() == "mine"


def test_a_model_without_geometry_is_refused_and_what_is_left_is_said(
    tmp_path: Path, capsys: Capture
) -> None:
    source = write_folder("idefics2", tmp_path / "model")
    capsys.readouterr()
    output = tmp_path / "out"
    arguments = ["--model", str(source), "--output", str(output)]
    assert main(["backbones", "new", "zz_none", *arguments]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"flmm: No package can be written for the model '{source}'.\n")
    assert "It is of the type 'idefics2', and its processor is a Idefics2Processor.\n" in error
    assert "say in views.py where the image tokens are" in error
    assert not output.exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "There is no "),
        ({"model_type": "gpt2"}, "transformers has no image-text-to-text model of the type 'gpt2'"),
        ({"model_type": "zz_unknown"}, "transformers loads with AutoModelForImageTextToText"),
        ({"model_type": "idefics3"}, "transformers loads with AutoModelForImageTextToText"),
    ],
)
def test_what_is_no_model_is_refused(
    config: dict[str, str] | None, message: str, tmp_path: Path, capsys: Capture
) -> None:
    source, output = tmp_path / "model", tmp_path / "out"
    if config is not None:
        source.mkdir()
        (source / "config.json").write_text(json.dumps(config))
    arguments = ["--model", str(source), "--output", str(output)]
    assert main(["backbones", "new", "zz_none", *arguments]) == 3
    assert message in capsys.readouterr().err
    assert not output.exists()


def test_a_model_that_cannot_be_fetched_is_no_fault_of_the_model(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    arguments = ["--model", "owner/no-such-model", "--output", str(tmp_path / "new")]
    assert main(["backbones", "new", "zz_far", *arguments]) == 3
    said = capsys.readouterr().err
    assert "not in the local cache, and HF_HUB_OFFLINE forbids" in said
    assert "Unset HF_HUB_OFFLINE" in said
    assert "AutoModel" not in said
