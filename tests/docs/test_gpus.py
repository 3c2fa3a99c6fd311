"""docs/gpus.md: every command is run, on drawn images, behind a toy model."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml
from PIL import Image

from flmm_core.cli import main
from flmm_core.config.shipped import shipped
from flmm_core.config.yaml_files import read_yaml
from tests.docs.pages import ROOT, blocks, commands
from tests.docs.stand_ins import arguments, replaced

PAGE = "docs/gpus.md"
LINES = [words for block in blocks(PAGE) if block.language == "sh" for words in commands(block)]
(SCRIPT,) = (block for block in blocks(PAGE) if block.language == "bash")


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a photo, and the settings of `--config paper` for a toy head and SAM."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (96, 64), "red").save("photo.jpg")
    settings = read_yaml(shipped()["paper"])[0]
    for key in ("epochs", "refiner_weights", "data_root"):
        del settings[key]
    settings |= {
        "steps": 2, "batch_size": 2, "refiner": "none", "refiner_options": {},
        "precision": "float32", "pictures": 1, "log_every": 1,
        "head": {"base_channels": 4, "enlarge_to": 16},
    }  # fmt: skip
    Path("paper.yaml").write_text(yaml.safe_dump(settings))
    return tmp_path


def on_stand_ins(given: list[str], twin: Path, drawn: Path) -> list[str]:
    return replaced(
        given,
        (r"--config paper", "--config paper.yaml"),
        (r"--model 3b", f"--model {twin}"),
        (r"refcoco:/data/coco@\w+", f"refcoco:{drawn}@train"),
        (r" --refiner-weights \S+", ""),
        (r" --processes \d+", ""),
        (r"/data/preview", "preview"),
        (r"/shared/", ""),
    )


def test_every_command_runs(
    stand_in: Path, random_twin: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    for words in LINES:
        given = arguments(words)
        if given is None:  # fetches what is drawn here
            continue
        given = on_stand_ins(given, random_twin, drawn)
        if words[0] == "torchrun" or "--processes" in words:
            given.append("--print-config")  # training in several processes has tests of its own
        if given[0] == "push":
            given += ["--model", "Qwen/Qwen2.5-VL-3B-Instruct"]  # the stand-in is a local folder
        if "--resume" in given:
            Path("runs/refcoco/summary.json").unlink()
        assert main(given) == 0, (shlex.join(words), capsys.readouterr().err)
        ran.append(given[0])
    assert ran.count("train") == 5
    assert {"data", "train", "report", "eval", "benchmark", "ground", "push"} <= set(ran)
    for made in ("preview", "runs/refcoco/training.html", "runs/refcoco-val/report.html", "found"):
        assert Path(made).exists(), made


def test_the_command_of_the_batch_script_is_accepted(
    stand_in: Path, random_twin: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (words,) = (words for words in commands(SCRIPT) if words[0] == "srun")
    given = on_stand_ins(arguments(words) or [], random_twin, drawn)
    assert words[-1] == "$resume"
    assert main([*given, "--print-config"]) == 0
    assert "max_hours: 7.5" in capsys.readouterr().out


def test_the_addresses_are_those_of_the_settings() -> None:
    assert "sam_vit_l_0b3195.pth" in shipped()["paper"].read_text()
    for path in ("/data/coco/refcoco/refs(unc).p", "/data/coco/refcoco/instances.json"):
        assert path in (ROOT / PAGE).read_text()
