"""No command that examines plugins waits long for a hostile one, or is ended by it."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from flmm_core.cli import diagnosis, main
from flmm_core.plugin_facts import others, remembered
from tests.plugin_facts.hostile import HOSTILE, good

Install = Callable[..., None]
Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="reasons are those of POSIX")

COMMANDS = {
    "backbones": 0,
    "backbones list --json": 0,
    "backbones show qwen --json": 0,
    "backbones show typo": 2,
    "backbones check typo": 2,
    "refiners list": 0,
    "refiners show typo": 2,
    "finders list": 0,
    "finders show typo": 2,
    "train --backbone typo --print-config": 2,
}
"""And their exit codes."""
BAD = "hangs", "exits", "interrupts", "forks and exits", "stops its parent", "kills its parent"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_ends_and_tells_the_reasons(
    command: str, install: Install, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remembered, "_kept", {})
    monkeypatch.setattr(others, "SECONDS", 0.5)
    monkeypatch.setattr(others, "PATIENT_SECONDS", 1.0)
    for name in BAD:
        module = f"zz_{name.replace(' ', '_')}"
        install(module.replace("_", "-"), **{module: HOSTILE[name][0]})
    start = time.monotonic()
    assert main(command.split()) == COMMANDS[command]
    assert time.monotonic() - start < 30  # 3 s on a quiet machine
    shown = capsys.readouterr()
    if "show qwen" not in command:  # which needs no other plugin
        for name in BAD:
            assert f"zz-{name.replace(' ', '-')} 0.1" in shown.out + shown.err


CLASSES = {
    "exits": ("import os; os._exit(7)", "importing it ends the process (status 7)"),
    "hangs": ("import time; time.sleep(99)", "importing it had not ended after 6 s"),
    "crashes": ("import ctypes; ctypes.string_at(0)", "importing it ends the process (SIGSEGV)"),
    "interrupts": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
    "needs a package": (
        "import no_such_package",
        "ModuleNotFoundError: No module named 'no_such_package'",
    ),
    "has no class": ("", "AttributeError: module 'of_has_no_class' has no attribute 'Class'"),
    "is no class": ("Class = 3", "TypeError: of_is_no_class:Class is not a class"),
    "stops its parent and hangs": (
        "import os, signal, time\nos.kill(os.getppid(), signal.SIGSTOP)\ntime.sleep(99)",
        "importing it had not ended after 6 s",
    ),
    "works": ("import torch\nclass Class: pass", None),
}
"""Modules of backbones' classes, which no command but `doctor` imports unless they are named."""


def test_doctor_tells_which_classes_cannot_be_imported(
    install: Install, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(diagnosis, "CLASS_SECONDS", 6.0)
    monkeypatch.setattr(diagnosis, "PROBE", """print('{"version": "2", "cuda": null}')""")
    for name, (source, _) in CLASSES.items():
        word = name.replace(" ", "_")
        plugin = good(word).replace("somewhere:", f"of_{word}:")
        install(word.replace("_", "-"), **{word: plugin})
        (tmp_path / f"of_{word}.py").write_text(source)
    assert main(["doctor", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    errors = {each["name"]: each["error"] for each in found["plugins"]["backbones"]}
    for name, (_, reason) in CLASSES.items():
        assert errors[name.replace(" ", "_")] == reason
    assert errors["qwen"] is None
    assert found["plugins"]["not_loaded"] == []
    assert len(found["problems"]) == len(CLASSES) - 1
    for problem in found["problems"]:
        assert problem.startswith("The backbone '"), problem
