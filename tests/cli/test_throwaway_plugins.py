"""A refiner of another distribution is trained, evaluated and used; the core stays as it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from textwrap import dedent

import pytest
from safetensors.torch import load_file

from flmm_core.cli import main

PLUGIN = """
    from flmm_core import RefinerSpec, hookimpl
    from flmm_core.spec import RefinerOptions

    class Options(RefinerOptions):
        gain: float = 1.0

    @hookimpl
    def flmm_refiners():
        target = "throwaway.refiner:Gain"
        return [RefinerSpec("gain", target, "a factor", options=Options, shorthand="gain")]
"""
REFINER = """
    import torch
    from flmm_core import MaskLogits, Refiner

    class Gain(Refiner):
        def __init__(self, gain):
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(gain))

        @classmethod
        def load(cls, options, *, weights=None, paper_rounding=False):
            return None, cls(options.gain)

        def forward(self, images, coarse, prompts, image_hw):
            assert set(images) == {None}
            return tuple(MaskLogits(self.gain * one, hw) for one, hw in zip(coarse, image_hw))
"""


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution with one entry point, on the search path."""
    files = {
        "throwaway-0.1.dist-info/METADATA": "Metadata-Version: 2.1\nName: throwaway\nVersion: 0.1",
        "throwaway-0.1.dist-info/entry_points.txt": "[flmm]\nthrowaway = throwaway",
        "throwaway/__init__.py": dedent(PLUGIN),
        "throwaway/refiner.py": dedent(REFINER),
    }
    for name, text in files.items():
        path = tmp_path / "site" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.chdir(tmp_path)
    for name in ("throwaway", "throwaway.refiner"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("_installed")
def test_a_refiner_of_a_plugin_is_trained_evaluated_and_used(
    random_twin: Path, drawn: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["refiners", "list"]) == 0
    assert "gain  a factor" in capsys.readouterr().out
    train = ["train", "--backbone", "qwen", "--model", str(random_twin), "--refiner", "gain:0.5"]
    small = ["--head-base-channels", "4", "--head-enlarge-to", "16", "--batch-size", "2"]
    data = f"refcoco:{drawn}@train"
    steps = ["--data", data, "--steps", "2", "--refiner-learning-rate", "0.1", "--output", "run"]
    assert main([*train, *small, *steps]) == 0
    trained = load_file("run/last/model.safetensors")
    assert trained["refiner.gain"].item() != 0.5
    capsys.readouterr()

    assert main(["eval", "run", "--data", data, "--limit", "2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["refiner"], found["refiner_options"]) == ("gain", {"gain": 0.5})
    assert found["data"][data]["samples"] == 2

    image = next(drawn.rglob("*.jpg"), None) or next(drawn.rglob("*.png"))
    assert main(["ground", str(image), "red ring", "the star", "--head", "run"]) == 0
    assert len(json.loads(Path("out/result.json").read_text())["found"]) == 2


@pytest.mark.usefixtures("_installed")
def test_its_options_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    dry = ["train", "--backbone", "qwen", "--refiner", "gain", "--print-config"]
    assert main([*dry, "--refiner-option", "gian=2"]) == 2
    assert "Did you mean 'refiner_options.gain'?" in capsys.readouterr().err
