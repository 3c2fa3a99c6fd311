"""`flmm demo`: the command itself."""

from __future__ import annotations

import re
import signal
import threading
import time
from pathlib import Path

import httpx
import pytest

from flmm_core.cli import main


def test_it_serves_until_ctrl_c_and_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    answers: list[httpx.Response] = []
    said = ""

    def visit() -> None:
        nonlocal said
        try:
            end = time.monotonic() + 60
            while time.monotonic() < end and "Ctrl-C" not in said:
                said += capfd.readouterr().out
                time.sleep(0.05)
            address = re.search(r"http://\S+", said)
            assert address is not None
            answers.extend(httpx.get(f"{address[0]}{path}") for path in ("/", "/page/state"))
        finally:
            signal.raise_signal(signal.SIGINT)

    visitor = threading.Thread(target=visit)
    visitor.start()
    code = main(["demo", "--port", "0"])
    visitor.join()
    assert code == 130
    assert [answer.status_code for answer in answers] == [200, 200]
    assert "No trained head was given or found in 'runs'" in said
    assert "flmm train --backbone" in said
    names = [model["name"] for model in answers[1].json()["models"]]
    assert any("qwen" in name for name in names)


def test_a_head_that_is_missing_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--head", "/nowhere"]) == 3
    assert "There is no trained head in '/nowhere'." in capsys.readouterr().err
