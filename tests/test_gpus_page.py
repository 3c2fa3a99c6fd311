"""docs/gpus.md: every command is run, on drawn images, behind a toy model."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

from flmm_core.cli import main
from flmm_core.config.shipped import shipped
from flmm_core.config.yaml_files import read_yaml

PAGE = (Path(__file__).parents[1] / "docs" / "gpus.md").read_text()
LINES = "".join(re.findall(r"```sh\n(.*?)```", PAGE, re.S)).splitlines()
(SCRIPT,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
SHELL = ("mkdir", "curl", "unzip", "hf")
"""Commands that fetch what the tests draw."""


def arguments(line: str) -> list[str]:
    """What `flmm` is given in a line of the page, whatever starts it."""
    first, *rest = shlex.split(line)
    if first == "torchrun":
        parsed = get_args_parser().parse_args(rest)  # torchrun's own
        assert (parsed.module, parsed.training_script) == (True, "flmm_core")
        return list(parsed.training_script_args)
    if first == "srun":
        first, *rest = rest
    assert first == "flmm", line
    return rest


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


def replaced(given: list[str], twin: Path, drawn: Path) -> list[str]:
    """The same command on stand-ins."""
    text = shlex.join(given)
    for pattern, other in (
        (r"--config paper", "--config paper.yaml"),
        (r"--model 3b", f"--model {twin}"),
        (r"refcoco:/data/coco@\w+", f"refcoco:{drawn}@train"),
        (r" --refiner-weights \S+", ""),
        (r" --processes \d+", ""),
        (r"/data/preview", "preview"),
        (r"/shared/", ""),
    ):
        text = re.sub(pattern, other, text)
    return shlex.split(text)


def test_every_command_runs(
    stand_in: Path, random_twin: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []
    for line in LINES:
        if line.split()[0] in SHELL:
            continue
        given = replaced(arguments(line), random_twin, drawn)
        if line.startswith("torchrun") or "--processes" in line:
            given.append("--print-config")  # training in several processes has tests of its own
        if given[0] == "push":
            given += ["--model", "Qwen/Qwen2.5-VL-3B-Instruct"]  # the stand-in is a local folder
        if "--resume" in given:
            Path("runs/refcoco/summary.json").unlink()
        assert main(given) == 0, (line, capsys.readouterr().err)
        ran.append(given[0])
    assert ran.count("train") == 5
    assert {"data", "train", "report", "eval", "benchmark", "ground", "push"} <= set(ran)
    for made in ("preview", "runs/refcoco/training.html", "runs/refcoco-val/report.html", "found"):
        assert Path(made).exists(), made


def test_the_batch_script_is_one_and_its_command_is_accepted(
    stand_in: Path, random_twin: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    subprocess.run(["bash", "-n"], input=SCRIPT, text=True, check=True)
    (line,) = (line for line in SCRIPT.splitlines() if line.startswith("srun"))
    given = replaced(arguments(line.removesuffix(" $resume")), random_twin, drawn)
    assert main([*given, "--print-config"]) == 0
    assert "max_hours: 7.5" in capsys.readouterr().out


def test_the_addresses_are_those_of_the_settings() -> None:
    assert "sam_vit_l_0b3195.pth" in shipped()["paper"].read_text()
    for path in ("/data/coco/refcoco/refs(unc).p", "/data/coco/refcoco/instances.json"):
        assert path in PAGE
