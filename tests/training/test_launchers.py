"""Processes that are started for real, by `--processes` and by torchrun, and how they end.

FLMM_LAUNCHES is how many of the endings are tried.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM, Signals

import psutil
import pytest

pytestmark = [pytest.mark.multiprocess, pytest.mark.slow]

OURS = [sys.executable, "-m", "flmm_core"]
TORCHRUN = [
    sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
    "-m", "flmm_core",
]  # fmt: skip
ENDINGS: list[tuple[list[str], str, Signals, int]] = [
    (OURS, "process", SIGKILL, 1),
    (OURS, "launcher", SIGKILL, -SIGKILL),
    (OURS, "launcher", SIGTERM, 130),
    (OURS, "launcher", SIGINT, 130),
    (TORCHRUN, "process", SIGKILL, 1),
    (TORCHRUN, "launcher", SIGKILL, -SIGKILL),
]
"""What starts two processes, what gets a signal, and the exit code."""


@pytest.mark.parametrize("number", range(int(os.environ.get("FLMM_LAUNCHES", "1"))))
def test_all_processes_end_together(number: int, config: Path) -> None:
    command, target, signal, code = ENDINGS[number]
    run = config.parent / f"run-{number}"
    arguments = [
        "train", "--config", str(config), "--output", str(run), "--steps", "100000",
        "--val-data", "", "--eval-data", "", *(["--processes", "2"] if command == OURS else []),
    ]  # fmt: skip
    log = run.with_suffix(".log")
    with log.open("w") as file:
        launcher = subprocess.Popen([*command, *arguments], stdout=file, stderr=file)
    started, processes = psutil.Process(launcher.pid), []
    try:
        await_(lambda: (run / "last").exists() or launcher.poll() is not None, 300)
        assert launcher.poll() is None, log.read_text()
        processes = [
            child for child in started.children() if "flmm_core" in " ".join(child.cmdline())
        ]
        assert len(processes) == 2
        (processes[1] if target == "process" else started).send_signal(signal)
        assert launcher.wait(90) == code
        await_(lambda: not any(map(is_alive, processes)), 90)
    finally:
        for child in (started, *processes):
            if is_alive(child):
                child.kill()
        launcher.wait()
    said = log.read_text()
    assert "Training in 2 processes (gloo, cpu)\n" in said
    assert (run / "last" / "model.safetensors").is_file()
    if command == OURS and target == "process":
        assert said.count("flmm: ") == 1
        assert "flmm: Process 1 of 2 was killed by SIGKILL.\n" in said
    if target == "launcher":  # the processes have time to save their step
        assert said.count("flmm: Interrupted. Step ") == 1
        assert "Traceback" not in said


def is_alive(process: psutil.Process) -> bool:
    """Whether it has not ended; one that nobody has asked for its exit code has."""
    return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)


def await_(happened: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)
