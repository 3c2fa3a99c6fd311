"""`flmm cache` and `flmm train --cache` on the command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flmm_core.cli import main

Capture = pytest.CaptureFixture[str]


def test_a_cache_is_built_shown_trained_on_and_cleared(
    random_twin: Path, drawn: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    settings = ["--backbone", "qwen", "--model", str(random_twin)]
    settings += [
        "--data",
        f"refcoco:{drawn}@train",
        "--refiner-option",
        "text=off",
        "--no-head-presence",
    ]
    assert main(["cache", "build", "c", *settings, "--forecast"]) == 0
    assert capsys.readouterr().out.startswith("c: ")
    assert not Path("c").exists()
    assert main(["cache", "build", "c", *settings]) == 0
    shown = capsys.readouterr()
    assert shown.out == "c\n"
    assert "The cache needs " in shown.err
    assert main(["cache", "info", "c"]) == 0
    shown_info = capsys.readouterr().out
    assert shown_info.startswith("c: 6 samples, ")
    assert "model files" in shown_info
    assert main(["cache", "info", "c", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["samples"], facts["images"], facts["broken"]) == (6, 6, {})
    assert facts["hidden"] is False

    small = ["--head-base-channels", "4", "--head-enlarge-to", "16", "--steps", "2"]
    run = ["train", *settings, *small, "--cache", "c", "--output", "r"]
    assert main(run) == 0
    assert capsys.readouterr().out == "r\n"
    assert (Path("r") / "last" / "model.safetensors").is_file()

    shard = next(Path("c").glob("features-*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["cache", "info", "c"]) == 3
    assert f"broken: {shard}" in capsys.readouterr().out
    assert main(["cache", "clear", "c"]) == 0
    assert capsys.readouterr().out.endswith(" freed\n")
    assert not Path("c").exists()
    assert main(["cache", "info", "c"]) == 2
    assert "There is no feature cache in 'c'." in capsys.readouterr().err
