"""`flmm backbones check`: one line for each check, 1 if one fails."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import flmm_core.testing
from flmm_core.cli import main
from flmm_core.testing import CHECKS

SOME = ("check_spec", "check_pixels", "check_shrunk_images", "check_answers_stop")
PLUGIN = """
    from flmm_core import BackboneSpec, ModelInfo, hookimpl

    @hookimpl
    def flmm_backbones():
        tiny = {"tiny": ModelInfo("flmm_qwen:tiny", "Apache-2.0")}
        return [BackboneSpec("crooked", "crooked_model:Crooked", "thumbnails", tiny)]
"""
MODEL = """
from flmm_qwen.backbone import QwenBackbone
from flmm_qwen import SPEC


class Crooked(QwenBackbone):
    @classmethod
    def load_model(cls, source, options, **kwargs):
        return super().load_model(source, SPEC.options(), **kwargs)

    def shrunk(self, image):
        return image.resize((64, 48))
"""


@pytest.fixture(autouse=True)
def fewer_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    some = tuple(check for check in CHECKS if check.__name__ in SOME)
    monkeypatch.setattr(flmm_core.testing, "CHECKS", some)


def test_a_good_backbone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "check", "qwen"]) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == "qwen, model tiny:"
    assert [line.split()[:2] for line in lines] == [["ok", name] for name in SOME]
    assert lines[0].endswith(
        "The spec names a Backbone class, and the source and license of every model."
    )
    assert last.startswith("none of 4 checks failed, ")


def test_a_fault_is_one_line_with_what_was_expected_and_found(
    install: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install("flmm-crooked", crooked=PLUGIN)
    (tmp_path / "crooked_model.py").write_text(MODEL)
    assert main(["backbones", "check", "crooked"]) == 1
    _, *lines, last = capsys.readouterr().out.splitlines()
    results = {re.split(r"  +", line.strip())[1]: line for line in lines}
    assert list(results) == list(SOME)
    assert results["check_spec"].startswith("  ok ")
    assert results["check_pixels"].startswith("  failed ")
    assert "image of 144 x 96: expected (" in results["check_pixels"]
    assert ", found (" in results["check_pixels"]
    assert "not promised" in results["check_answers_stop"]
    assert results["check_answers_stop"].endswith("the capability 'chat' is not declared")
    assert last.startswith("2 of 4 checks failed, ")

    assert main(["backbones", "check", "crooked", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert said["ok"] is False
    failed = [one for one in said["checks"] if one["result"] == "failed"]
    assert [one["check"] for one in failed] == ["check_pixels", "check_shrunk_images"]
    assert all(one["expected"] and one["found"] and one["reason"] for one in failed)


def test_an_unknown_backbone_is_a_usage_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "check", "qwenn"]) == 2
    assert "Did you mean 'qwen'?" in capsys.readouterr().err
