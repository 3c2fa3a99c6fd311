"""The main job as a user runs it, small: the shipped twins, the command line, real processes.

The control is the same training behind a twin with random weights. If it came near, the head
would not be using attention.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.cli import main
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from recipes.all_objects import all_objects
from recipes.twins import build_twin
from tests.cached import made_once

pytestmark = pytest.mark.slow

MODEL = (
    "--head-base-channels", "16", "--learning-rate", "6e-3", "--refiner-learning-rate", "3e-4",
    "--refiner-option",
    "text=off",
)  # fmt: skip


def flmm(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "flmm_core", *arguments],
        capture_output=True,
        text=True,
        check=check,
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "scenes", write_scenes)


def write_scenes(folder: Path) -> None:
    FORMATS["refcoco"].write(folder / "train", draw_images(300, seed=1, kinds=("plain",)))
    FORMATS["refcoco"].write(
        folder / "test", draw_images(40, seed=2, kinds=("plain",), split="test")
    )
    FORMATS["refcoco"].write(
        folder / "flat", draw_images(20, seed=3, kinds=("flat",), split="test")
    )


def train(scenes: Path, output: Path, backbone: str, model: str, steps: int = 80) -> dict[str, Any]:
    flmm(
        "train", "--backbone", backbone, "--model", model, "--output", str(output),
        "--steps", str(steps), "--batch-size", "4", "--ema", "0.9", "--pictures", "1",
        "--data", f"refcoco:{scenes / 'train'}@train",
        "--eval-data", f"refcoco:{scenes / 'test'}@test",
        *MODEL,
    )  # fmt: skip
    summary: dict[str, Any] = json.loads((output / "summary.json").read_text())
    return summary


@pytest.fixture(scope="module")
def run(scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run behind the shipped twin of one family."""

    def make(folder: Path) -> None:
        train(scenes, folder, "qwen", "tiny")

    return made_once(tmp_path_factory, "qwen", make)


def test_a_twin_grounds_and_the_refiner_helps(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert summary["refined"]["ciou"] > 0.45
    assert summary["refined"]["ciou"] > summary["coarse"]["ciou"] + 0.05
    assert summary["vlm_sha256"]["before"] == summary["vlm_sha256"]["after"]


@pytest.mark.parametrize("backbone", ["deepseek_vl", "llava_next"])
def test_the_same_line_trains_every_backbone(backbone: str, scenes: Path, tmp_path: Path) -> None:
    summary = train(scenes, tmp_path / "run", backbone, "tiny", steps=8)
    assert summary["evaluations"][f"refcoco:{scenes / 'test'}@test"]["refined"]["masks"] > 80
    assert summary["vlm_sha256"]["before"] == summary["vlm_sha256"]["after"]


def test_control_behind_random_weights_it_is_not_known_which_thing_is_meant(
    run: Path, scenes: Path, tmp_path: Path
) -> None:
    """A random VLM still shows where things are; all of them at once is as far as that goes."""
    trained = json.loads((run / "summary.json").read_text())
    twin = build_twin("qwen", tmp_path / "random", seed=1)
    control = train(scenes, tmp_path / "control", "qwen", str(twin))
    everything = all_objects(f"refcoco:{scenes / 'test'}@test")["ciou"]
    assert control["refined"]["ciou"] < everything + 0.03
    assert trained["refined"]["ciou"] > everything + 0.03
    assert trained["refined"]["ciou"] > control["refined"]["ciou"] + 0.1


def test_another_renderer_is_grounded_too(run: Path, scenes: Path) -> None:
    source = f"refcoco:{scenes / 'flat'}@test"
    done = flmm("eval", str(run), "--data", source, "--json")
    assert json.loads(done.stdout)["data"][source]["refined"]["ciou"] > 0.35


def test_images_of_every_kind_are_grounded_upright(run: Path, tmp_path: Path) -> None:
    upright = Image.new("RGB", (200, 120), (225, 225, 225))
    rows, columns = np.mgrid[0:120, 0:200]
    pixels = np.asarray(upright).copy()
    pixels[(rows - 60) ** 2 + (columns - 40) ** 2 < 24**2] = (40, 85, 215)
    pixels[36:84, 130:178] = (214, 40, 40)
    upright = Image.fromarray(pixels)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns it by 90 degrees clockwise
    turned.save(tmp_path / "exif.jpg", quality=95, exif=exif)
    upright.save(tmp_path / "plain.png")
    upright.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=95)
    with_alpha = upright.convert("RGBA")
    with_alpha.save(tmp_path / "alpha.png")
    upright.convert("L").save(tmp_path / "grey.png")
    centres = {}
    for name in ("plain.png", "exif.jpg", "cmyk.jpg", "alpha.png", "grey.png"):
        out = tmp_path / f"out-{name}"
        photo = str(tmp_path / name)  # here: a process for each would import torch each time
        assert not main(
            ["ground", photo, "the blue circle", "--head", str(run), "--output", str(out)]
        )
        mask = np.asarray(Image.open(out / "mask-1.png").convert("L")) > 0
        assert mask.shape == (120, 200), name
        assert (out / "overlay.png").exists()
        (record,) = json.loads((out / "result.json").read_text())["found"]
        assert record["phrase"] == "the blue circle"
        assert record["segmentation"]["size"] == [120, 200]
        centres[name] = np.argwhere(mask).mean(0) if mask.any() else (np.nan, np.nan)
    for name in ("plain.png", "exif.jpg", "cmyk.jpg", "alpha.png"):
        assert np.hypot(*(np.array(centres[name]) - (60, 40))) < 25, (name, centres[name])
