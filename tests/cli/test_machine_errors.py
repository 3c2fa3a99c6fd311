"""Full disks, too little memory, names and words that are not text: errors, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from flmm_core.cli import main
from flmm_core.data.sources import open_source
from flmm_core.errors import machine_error

Capture = pytest.CaptureFixture[str]


@contextmanager
def limited(kind: int, soft: int) -> Iterator[None]:
    """A limit of this process, as `ulimit` sets it."""
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)


def test_a_file_that_does_not_fit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["data", "draw", "in", "--format", "jsonl", "--pictures", "30"]) == 0
    capsys.readouterr()
    with limited(resource.RLIMIT_FSIZE, 4_000):
        assert main(["data", "convert", "jsonl:in@train", "out"]) == 1
    first, found, repair = capsys.readouterr().err.splitlines()[-3:]
    assert first.startswith(f"flmm: '{tmp_path / 'out'}")
    assert first.endswith("' cannot be read or written.")
    assert (found, repair) == (
        "File too large.",
        "Free some space and run the command again; what is written whole is kept.",
    )
    assert not Path("out").exists()


def test_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("L", (9_000, 9_000)).save("a.png")
    objects = {"phrases": [["a dot"]], "segmentation": [[[0, 0, 9, 0, 9, 9]]]}
    line = {"file_name": "a.png", "width": 9_000, "height": 9_000, "objects": objects}
    Path("metadata.jsonl").write_text(json.dumps(line))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    with limited(resource.RLIMIT_AS, pages * resource.getpagesize() + (120 << 20)):
        code = main(["data", "check", "jsonl:."])
    assert code == 1
    assert "flmm: There is not enough memory.\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "repair"),
    [
        (errno.EACCES, "Check the permissions of the path, or give another one."),
        (errno.ENOSPC, "Free some space and run the command again; what is written whole is kept."),
        (errno.ENAMETOOLONG, "Check the path, or give another one."),
    ],
)
def test_errors_of_the_system_name_the_path(number: int, repair: str) -> None:
    error = machine_error(OSError(number, os.strerror(number), "/data/x"))
    assert str(error).splitlines() == [
        "'/data/x' cannot be read or written.", f"{os.strerror(number)}.", repair
    ]  # fmt: skip
    assert machine_error(OSError(errno.EBADF, "Bad file descriptor")) is None
    assert machine_error(RuntimeError("a fault of ours")) is None
    assert machine_error(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) is not None


def test_a_path_that_is_too_long(capsys: Capture) -> None:
    assert main(["data", "convert", "shapes@absent", "x" * 300]) == 2
    assert "File name too long" in capsys.readouterr().err


def test_names_that_are_not_utf8_and_words_that_are_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    name = os.fsdecode(b"K\xe4fer.png")  # as Latin-1 machines wrote it
    Image.new("RGB", (20, 10)).save(name)
    phrases = [["a cup"], ["half a \ud83d"], ["ein Käfer \U0001f41e"]]
    objects = {"phrases": phrases, "segmentation": [[[0, 0, 9, 0, 9, 9]]] * 3}
    line = {"file_name": name, "width": 20, "height": 10, "objects": objects}
    Path("metadata.jsonl").write_text(json.dumps(line))
    assert main(["data", "check", "jsonl:."]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("left out: object 1 of K\\udce4fer.png: its words are not Unicode text")
    assert main(["data", "convert", "jsonl:.", "out", "--max-skipped", "1"]) == 0
    written = open_source("jsonl:out@train")
    assert [phrase.text for sample in written for phrase in sample.phrases] == [
        "a cup", "ein Käfer \U0001f41e"
    ]  # fmt: skip
    assert [sample.name.encode() for sample in written]
    assert main(["data", "check", "jsonl:out@train"]) == 0


@pytest.mark.parametrize(
    "command",
    [
        ["data", "check", "jsonl:K\udce4fer"],
        ["data", "convert", "shapes@absent", "K\udce4fer"],
        ["benchmark", "--backbone", "qwen", "--output", "K\udce4fer"],
        ["train", "--backbone", "qwen", "--output", "K\udce4fer"],
    ],
)
def test_folders_that_records_could_not_name(command: list[str], capsys: Capture) -> None:
    assert main(command) == 2
    assert "is not UTF-8 text." in capsys.readouterr().err


def test_a_configuration_of_lists_within_lists(tmp_path: Path, capsys: Capture) -> None:
    config = tmp_path / "run.yaml"
    config.write_text("backbone: qwen\ndata: " + "[" * 5_000)
    assert main(["train", "--config", str(config), "--print-config"]) == 2
    assert "Line 2: it is nested too deeply.\n" in capsys.readouterr().err
