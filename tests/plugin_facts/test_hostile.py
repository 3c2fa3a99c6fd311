"""Plugins that hang, crash or change their process are listed with the reason; others work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flmm_core.errors import UsageError
from flmm_core.plugin_facts import others
from flmm_core.plugins import load_backbones
from tests.plugin_facts.hostile import HOSTILE, NOISE, SECONDS, good

Install = Callable[..., None]
pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="reasons are those of POSIX")


PATIENTLY = f"""
import sys
from flmm_core.cli import main
from flmm_core.plugin_facts import others
others.SECONDS = {SECONDS}
sys.exit(main(sys.argv[1:]))
"""


def flmm(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.run(
        [sys.executable, "-c", PATIENTLY, *arguments],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        timeout=120,  # some plugins never end; a quiet machine needs less than 3 s
    )


@pytest.fixture
def hostile(install: Install) -> None:
    for name, (source, _) in HOSTILE.items():
        module = f"zz_{name.replace(' ', '_').replace('.', '_')}".lower()
        install(module.replace("_", "-"), **{module: source})
    install("noisy", noisy=NOISE + good("noisy", "Clears \x1b[2J the screen"))


@pytest.mark.usefixtures("hostile")
def test_hostile_plugins_are_listed_with_their_reasons(tmp_path: Path) -> None:
    start = time.monotonic()
    shown = flmm("backbones", "list")
    seconds = time.monotonic() - start
    print(f"{len(HOSTILE)} hostile plugins are listed after {seconds:.1f} s")
    assert (shown.returncode, shown.stderr) == (0, "")
    good_ones, bad_ones = shown.stdout.split("\n\nNot loaded:\n")
    assert [line.split()[0] for line in good_ones.splitlines()] == [
        "auto", "deepseek_vl", "llava_next", "noisy", "qwen",
    ]  # fmt: skip
    assert "Clears \\x1b[2J the screen" in good_ones
    reasons = dict(line.split(" 0.1", 1) for line in bad_ones.split("\n\n")[0].splitlines())
    assert len(reasons) == len(HOSTILE)
    for name, (_, reason) in HOSTILE.items():
        label = f"  zz-{name.lower().replace(' ', '-').replace('.', '-')}"
        assert reasons[label].strip().startswith(reason), name
    assert all(line.isprintable() for line in shown.stdout.splitlines())

    facts = json.loads(flmm("refiners", "list", "--json").stdout)
    assert [refiner["name"] for refiner in facts["refiners"]] == ["none", "sam", "sam2"]
    assert not examiners(tmp_path)


def examiners(plugins: Path) -> list[psutil.Process]:
    """Processes that examine plugins of a folder, and what these started."""
    every = psutil.process_iter(["cmdline"])
    lines = [(one, " ".join(one.info["cmdline"] or ())) for one in every]
    return [one for one, line in lines if "plugin_facts" in line and str(plugins) in line]


@pytest.mark.usefixtures("hostile")
def test_a_backbone_of_our_own_is_used_without_examining_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unwanted(*arguments: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", unwanted)
    assert load_backbones().get("qwen").name == "qwen"


@pytest.mark.parametrize(
    ("sent", "reason"), [("SIGKILL", "ends"), ("SIGSTOP", "stops")], ids=["kill", "stop"]
)
def test_a_plugin_that_hinders_the_process_of_all_takes_no_other_with_it(
    sent: str, reason: str, install: Install
) -> None:
    """It looks for it above its warden."""
    above = "import psutil, signal\nall = psutil.Process().parents()[1]\n"
    install("zz-bad", zz_bad=f"{above}all.send_signal(signal.{sent})\n" + good("bad"))
    install("fine", fine="import time; time.sleep(0.2)\n" + good("fine"))
    start = time.monotonic()
    registry = load_backbones()
    assert "fine" in registry.specs
    assert [str(failure) for failure in registry.failures] == [
        f"zz-bad 0.1 (importing it {reason} the process that examines it)"
    ]
    with pytest.raises(UsageError, match="Unknown backbone 'typo'"):
        registry.get("typo")
    assert time.monotonic() - start < 30  # not slow: it is not waited for; 4 s on a quiet machine


def test_a_slow_plugin_is_waited_for_where_its_backbone_is_named(
    install: Install, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(others, "SECONDS", 0.3)
    install("slow", slow="import time; time.sleep(1.5)\n" + good("lazy"))
    assert "lazy" not in load_backbones().specs
    registry = load_backbones()
    assert registry.get("lazy").summary == "A summary"
    assert caplog.messages == ["Waiting up to 20 s for plugins that are slow to import: slow 0.1."]
    assert load_backbones().plugins["lazy"].seconds > 1.4
    assert not load_backbones().failures
