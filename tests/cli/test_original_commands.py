"""`flmm import-flmm` and `flmm export-flmm`, and what an imported head is good for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flmm_core.cli import main
from tests.models import picture
from tests.original import toy_checkpoint

SIZES = {"qwen": (4, 16, 128), "deepseek_vl": (4, 16, 128), "llava_next": (4, 32, 128)}
"""Layers, attention channels (of all views) and width of the toy models."""


@pytest.mark.parametrize("backbone", SIZES)
def test_an_imported_head_works_like_any_other(
    backbone: str, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, photo = toy_checkpoint(*SIZES[backbone]), tmp_path / "photo.png"
    torch.save({"state_dict": checkpoint, "meta": {"epoch": 8}}, tmp_path / "flmm.pth")
    picture(60, 40).save(photo)
    assert main(["import-flmm", str(tmp_path / "flmm.pth"), "--backbone", backbone]) == 0
    said = capsys.readouterr().out
    assert f"4 layers x 4 heads{' x 2 views' if backbone == 'llava_next' else ''}" in said
    head, out = str(tmp_path / "flmm"), tmp_path / "out"
    assert said.splitlines()[-1] == f"{head}: flmm ground IMAGE PHRASE --head {head}"

    assert main(["ground", str(photo), "red ring", "--head", head, "--output", str(out)]) == 0
    (found,) = json.loads((out / "result.json").read_text())["found"]
    assert found["segmentation"]["size"] == [40, 60]
    capsys.readouterr()

    back = tmp_path / "back.pth"
    assert main(["export-flmm", head, str(back)]) == 0
    written = torch.load(back)
    assert all(torch.equal(x, checkpoint[name].float()) for name, x in written.items())
    assert written.keys() == {name for name in checkpoint if "image_encoder" not in name}
    capsys.readouterr()
    if backbone == "qwen":
        data = f"refcoco:{drawn}@train"
        assert main(["eval", head, "--data", data, "--limit", "2", "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["protocol"] == "flmm-paper"
        assert result["data"][data]["refined"]["masks"] > 0


def test_what_cannot_be_done_is_said_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, head = tmp_path / "flmm.pth", tmp_path / "flmm"
    torch.save(toy_checkpoint(*SIZES["qwen"]), file)

    def refused(code: int, *command: str) -> str:
        assert main(list(command)) == code
        said = capsys.readouterr().err
        assert "Traceback" not in said
        assert [path.name for path in tmp_path.iterdir()] == ["flmm.pth"]
        return said

    given = "import-flmm", str(file)
    assert "Give it with --backbone" in refused(2, *given)
    assert "Did you mean 'qwen'?" in refused(2, *given, "--backbone", "qwenn")
    assert "attention channels: checkpoint 16, model 'tiny' 32" in refused(
        3, *given, "--backbone", "llava_next"
    )
    assert "layers: checkpoint 4" not in refused(
        3, *given, "--backbone", "qwen", "--model", "no/no"
    )
    missing = str(tmp_path / "missing.pth")
    assert "No such file" in refused(3, "import-flmm", missing, "--backbone", "qwen")
    assert "unknown setting" in refused(2, *given, "--backbone", "qwen", "--options", "a=1")
    assert "There is no trained head" in refused(3, "export-flmm", str(head), str(tmp_path / "b"))

    assert main([*given, "--backbone", "qwen"]) == 0
    capsys.readouterr()
    assert main([*given, "--backbone", "qwen"]) == 2
    assert f"The output folder '{head}' is not empty." in capsys.readouterr().err
    assert main(["export-flmm", str(head), str(file)]) == 2
    assert "exists already" in capsys.readouterr().err
