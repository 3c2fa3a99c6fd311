"""The command line: exit codes, messages, options generated from the settings."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml

import flmm_core
from flmm_core.cli import COMMANDS, flmm, main
from flmm_core.config import option_name, settings
from flmm_core.errors import DataError, FlmmError, RunError, UsageError, WeightsError
from flmm_core.files import write_text
from tests.values import as_arguments, other_value

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLMM_DEBUG", raising=False)


def use_train(monkeypatch: Patch, train: Callable[..., Any]) -> None:
    monkeypatch.setitem(sys.modules, "flmm_core.training.train", SimpleNamespace(train=train))


def raising(error: BaseException) -> Callable[..., Any]:
    def train(*_: object, **__: object) -> None:
        raise error

    return train


# --- help and names --------------------------------------------------------------------------


def test_help_lists_every_command_with_the_first_line_of_its_own_help(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    shown, width = capsys.readouterr().out, max(map(len, COMMANDS))
    for name, summary in COMMANDS.items():
        assert f"  {name:<{width}}  {summary}" in shown
        command = flmm.get_command(click.Context(flmm), name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == summary


def test_help_is_quick() -> None:
    seconds = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "flmm_core", "--help"], check=True, stdout=-3)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 0.5


def test_the_version_is_the_distributions(capsys: Capture) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"flmm {version('flmm')}\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainn"], "flmm: No such command 'trainn'. Did you mean 'train'?\n`flmm --help`"),
        (["train", "--bath-size", "3"], "flmm: No such option|--batch-size"),
        (["train", "--no-sam-text"], "flmm: No such option|Did you mean '--refiner-option'?"),
        (
            ["train", "--backbone", "auto", "--allow-unlisted"],
            "flmm: No such option|Did you mean '--options allow_unlisted=true' (backbone auto)?\n",
        ),
        (["backbones", "check", "auto", "--no-allow-unlisted"], "flmm: No|allow_unlisted=false"),
        (
            ["train", "--min-pixels=9"],
            "flmm: No such option|'--options min_pixels=VALUE' (backbone",
        ),
        (["train", "--steps", "many"], "flmm: Invalid value for '--steps': 'many' is not a valid"),
        (["train", "--workers", "x"], "flmm: Invalid value for '--workers': 'x' is neither a"),
        (["train", "--options", "x"], "flmm: Invalid value for '--options': 'x' is not of the"),
        (["ground", "a.png", "--head", "x"], "flmm: There is no phrase to segment."),
        (["backbones", "show", "qwenn"], "flmm: Unknown backbone 'qwenn'. Did you mean 'qwen'?\n"),
        (["refiners", "show", "sma"], "flmm: Unknown refiner 'sma'. Did you mean 'sam'?\n"),
        (["train"], "flmm: One problem in the configuration.\n  backbone: missing."),
        (["train", "--config", "no.yaml"], "flmm: The configuration file 'no.yaml' cannot be"),
        (["data", "draw", "x", "--kind", "plan"], "flmm: Unknown kind of scene 'plan'. Did you"),
    ],
)
def test_wrong_usage_exits_2_with_a_suggestion(
    arguments: list[str], message: str, capsys: Capture
) -> None:
    assert main(arguments) == 2
    shown = capsys.readouterr()
    start, *rest = message.split("|")  # what is between them is the words of a version of click
    assert shown.err.startswith(start)
    assert all(part in shown.err for part in rest)
    assert shown.out == ""


# --- exit codes ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunError("It failed.", repair="Try again."), 1),
        (UsageError("It failed.", repair="Try again."), 2),
        (WeightsError("It failed.", repair="Try again."), 3),
        (DataError("It failed.", repair="Try again."), 3),
    ],
)
def test_a_repairable_error_is_a_message_and_an_exit_code(
    error: FlmmError, code: int, monkeypatch: Patch, capsys: Capture
) -> None:
    use_train(monkeypatch, raising(error))
    assert main(["train", "--backbone", "qwen"]) == code
    assert capsys.readouterr().err == "flmm: It failed.\nTry again.\n"
    monkeypatch.setenv("FLMM_DEBUG", "1")
    with pytest.raises(type(error)):
        main(["train", "--backbone", "qwen"])


def test_a_full_disk_is_named(monkeypatch: Patch, capsys: Capture) -> None:
    use_train(monkeypatch, raising(OSError(errno.ENOSPC, "No space left on device", "runs/x")))
    assert main(["train", "--backbone", "qwen"]) == 1
    assert capsys.readouterr().err == (
        "flmm: 'runs/x' cannot be read or written.\n"
        "No space left on device.\n"
        "Free some space and run the command again; what is written whole is kept.\n"
    )


def test_a_killed_worker_is_reported(monkeypatch: Patch, capsys: Capture) -> None:
    said = "DataLoader worker (pid 7) is killed by signal: Killed."
    use_train(monkeypatch, raising(RuntimeError(said)))
    assert main(["train", "--backbone", "qwen"]) == 1
    assert capsys.readouterr().err == (
        f"flmm: A DataLoader worker died.\n{said}\n"
        "The machine may be out of memory or of /dev/shm: use fewer --workers, or 0.\n"
    )


@pytest.mark.parametrize("bug", [RuntimeError("bug"), FileNotFoundError(errno.ENOENT, "bug")])
def test_a_bug_keeps_its_traceback(bug: Exception, monkeypatch: Patch) -> None:
    use_train(monkeypatch, raising(bug))
    with pytest.raises(type(bug)):
        main(["train", "--backbone", "qwen"])


def test_an_interrupted_run_says_how_to_resume(monkeypatch: Patch, capsys: Capture) -> None:
    def train(config: Any, spec: object, progress: object, world: object) -> None:
        write_text(config.output / "config.yaml", config.to_yaml())
        raise KeyboardInterrupt("Step 10 of 20 is saved.")

    use_train(monkeypatch, raising(KeyboardInterrupt()))
    assert main(["train", "--backbone", "qwen", "--output", "a"]) == 130
    assert capsys.readouterr().err.strip() == "flmm: Interrupted."
    use_train(monkeypatch, train)
    assert main(["train", "--backbone", "qwen", "--output", "b"]) == 130
    assert capsys.readouterr().err.strip() == (
        "flmm: Interrupted. Step 10 of 20 is saved. Resume with `flmm train --resume --output b`."
    )


def test_ctrl_c_exits_130_without_a_traceback(tmp_path: Path) -> None:
    info = tmp_path / "sleepy-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sleepy\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[flmm]\nsleepy = sleepy\n")
    (tmp_path / "sleepy.py").write_text("import time; open('here', 'w'); time.sleep(60)")
    search = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    command = subprocess.Popen(
        [sys.executable, "-m", "flmm_core", "backbones"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": search, "FLMM_CACHE": str(tmp_path / "cache")},
        # A shell that starts the tests in the background has them ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert command.stderr is not None
    while not (tmp_path / "here").exists():
        assert command.poll() is None
        time.sleep(0.01)
    command.send_signal(signal.SIGINT)
    rest = command.stderr.read()
    assert command.wait(timeout=30) == 130
    assert rest.strip() == "flmm: Interrupted."


def test_a_closed_pipe_is_silent() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as pipe:
        run = subprocess.run(
            [sys.executable, "-m", "flmm_core", "backbones", "list", "--json"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert run.stderr == ""


# --- train -----------------------------------------------------------------------------------


def test_every_setting_has_an_option_and_reaches_the_configuration(capsys: Capture) -> None:
    wanted = {setting.key: other_value(setting) for setting in settings()}
    del wanted["epochs"]  # contradicts --steps
    arguments = [part for key, value in wanted.items() for part in as_arguments(key, value)]
    assert main(["train", *arguments, "--print-config"]) == 0
    resolved = yaml.safe_load(capsys.readouterr().out)
    assert wanted.pop("resume")
    assert wanted.pop("force")
    assert wanted.pop("strict")
    assert wanted.pop("check") is False
    for key, value in wanted.items():
        found = resolved
        for part in key.split("."):
            found = found[part]
        assert found == value, key


def test_every_option_shows_its_default_and_help(capsys: Capture) -> None:
    main(["train", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for setting in settings():
        assert option_name(setting.key) in shown
        assert " ".join(setting.help.split()) in shown
    assert "--learning-rate FLOAT Peak learning rate of AdamW. [default: 0.0001]" in shown
    resume = "--resume / --no-resume Resume the run in the output folder with its settings."
    assert f"{resume} [default: off]" in shown
    assert "--data TEXT Train on NAME[:PATH][@SPLIT]; repeatable. [default: shapes@train]" in shown


def test_a_dry_run_trains_nothing_and_can_be_run(
    monkeypatch: Patch, capsys: Capture, tmp_path: Path
) -> None:
    use_train(monkeypatch, raising(AssertionError("trained")))
    arguments = ["--backbone", "qwen", "--steps", "7", "--output", "runs/dry"]
    assert main(["train", *arguments, "--print-config"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(
        "# Train a mask head on qwen, model tiny (flmm_qwen:tiny, license Apache-2.0):\n"
        "# 7 steps of batch size 8 on shapes@train;\n"
    )
    assert list(tmp_path.iterdir()) == []
    Path("again.yaml").write_text(shown)
    assert main(["train", "--config", "again.yaml", "--print-config"]) == 0
    assert capsys.readouterr().out == shown


def test_a_list_can_be_emptied(capsys: Capture) -> None:
    assert main(["train", "--backbone", "qwen", "--eval-data", "", "--print-config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["eval_data"] == []


def test_train_receives_the_resolved_configuration(monkeypatch: Patch, capsys: Capture) -> None:
    seen: list[Any] = []

    def train(config: Any, spec: Any, progress: Any, world: Any) -> Path:
        assert world.size == 1
        seen.extend([config, spec])
        progress.say("working")
        return config.output

    use_train(monkeypatch, train)
    Path("run.yaml").write_text("backbone: llava_next\nsteps: 5\nseed: 3\noutput: runs/a\n")
    assert main(["train", "--config", "run.yaml", "--seed", "4"]) == 0
    config, spec = seen
    assert (config.steps, config.seed, spec.name) == (5, 4, "llava_next")
    shown = capsys.readouterr()
    assert (shown.out, shown.err.splitlines()[0]) == ("runs/a\n", "working")
    assert shown.err.endswith('Next: flmm ground IMAGE "a phrase" --head runs/a\n')


@pytest.mark.parametrize(
    "arguments",
    [["train", "--backbone", "qwen"], ["ground", "a.png", "a ring", "--head", "runs/a"]],
)
def test_an_unwritable_output_is_found_before_any_work(
    arguments: list[str], monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr("flmm_core.training.train.prepare", raising(AssertionError("loaded")))
    monkeypatch.setattr(flmm_core, "Grounder", None, raising=False)
    Path("file").write_text("")
    assert main([*arguments, "--output", "file/out"]) == 2
    assert capsys.readouterr().err == (
        "flmm: The output folder 'file/out' cannot be written.\n"
        "Not a directory: file.\n"
        "Give another --output.\n"
    )
