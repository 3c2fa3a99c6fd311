from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from flmm_core.errors import UsageError
from flmm_core.files import (
    discard_empty,
    hold,
    naming,
    open_whole,
    remove_folder,
    sweep,
    whole_file,
    whole_folder,
    write_bytes,
    write_json,
    write_text,
)


@pytest.mark.parametrize("exists", [False, True])
def test_a_whole_folder_appears_at_the_end_or_never(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "a" / "b"
    if exists:
        folder.mkdir(parents=True)

    def write(fail: bool) -> None:
        with whole_folder(folder) as aside:
            (aside / "sub").mkdir()
            (aside / "sub" / "file").write_text("x")
            assert not (folder / "sub").exists()
            if fail:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(fail=True)
    assert not list(tmp_path.rglob("sub"))
    assert folder.exists() == exists
    write(fail=False)
    assert [path.name for path in folder.iterdir()] == ["sub"]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]
    assert (folder / "sub" / "file").read_text() == "x"


def test_new_files_are_moved_into_a_folder_that_exists(tmp_path: Path) -> None:
    (tmp_path / "kept").touch()
    (tmp_path / "one").write_text("old")
    with whole_folder(tmp_path) as aside:
        (aside / "one").write_text("new")
        assert (tmp_path / "one").read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "one"]
    assert (tmp_path / "one").read_text() == "new"


def test_a_folder_is_replaced_when_the_new_one_is_whole(tmp_path: Path) -> None:
    folder = tmp_path / "head"

    def write(name: str, fail: bool = False) -> None:
        with whole_folder(folder, replace=True) as aside:
            (aside / name).touch()
            if fail:
                raise OSError(errno.ENOSPC, "No space left on device")

    write("first")
    assert [path.name for path in tmp_path.rglob("*")] == ["head", "first"]
    with pytest.raises(OSError, match="No space") as caught:
        write("second", fail=True)
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.rglob("*")] == ["head", "first"]
    write("third")
    assert [path.name for path in tmp_path.rglob("*")] == ["head", "third"]


def test_a_folder_that_another_made_meanwhile_stays(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with whole_folder(folder) as aside:
        (aside / "late").touch()
        folder.mkdir()
        (folder / "first").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["a", "first"]


def test_the_folder_of_the_shell_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with whole_folder(Path()) as aside:
        (aside / "file").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_others_may_read_as_the_umask_says(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        with whole_folder(tmp_path / "a") as aside:
            (aside / "file").touch()
    finally:
        os.umask(old)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o750


def test_a_whole_file_appears_at_the_end_or_never(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lines"
    with open_whole(path) as file:
        file.write(b"one")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"onetwo"

    def write() -> None:
        with open_whole(path) as file:
            file.write(b"three")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"onetwo"
    assert len(list(path.parent.iterdir())) == 1


def test_whoever_writes_the_file_itself_gets_a_path(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    with whole_file(path, sync=True) as partial:
        partial.write_bytes(b"abc")
    assert path.read_bytes() == b"abc"
    for target in ("one", "two"):
        (tmp_path / target).touch()
        with whole_file(tmp_path / "last") as partial:
            partial.symlink_to(target)
        assert (tmp_path / "last").readlink() == Path(target)


def test_what_a_killed_process_left_is_no_hindrance_and_can_be_swept(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_text("much more than is written now")
    (tmp_path / ".b.12345678.partial" / "sub").mkdir(parents=True)
    write_bytes(tmp_path / "a", b"1")
    assert (tmp_path / "a").read_bytes() == b"1"
    (tmp_path / "a.partial").touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "last.partial").symlink_to("kept")
    sweep(tmp_path, "b")
    assert (tmp_path / "a.partial").exists()
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "kept"]


def test_text_and_json_are_utf_8(tmp_path: Path) -> None:
    write_text(tmp_path / "text", "ä\r\n")
    assert (tmp_path / "text").read_bytes() == "ä\r\n".encode()
    write_json(tmp_path / "json", {"word": "ä", "two": [1, 2]}, compact=True)
    assert (tmp_path / "json").read_bytes() == '{"word": "ä", "two": [1, 2]}'.encode()
    write_json(tmp_path / "json", {"word": "ä"})
    assert (tmp_path / "json").read_bytes() == '{\n  "word": "ä"\n}\n'.encode()
    with pytest.raises(TypeError):
        write_json(tmp_path / "json", object())
    assert json.loads((tmp_path / "json").read_text(encoding="utf-8")) == {"word": "ä"}


def test_an_error_without_a_path_gets_the_one_that_was_written(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    for name, writing in (("a", whole_file), ("b", whole_folder), ("c", naming)):
        with pytest.raises(OSError, match="No space") as caught, writing(tmp_path / name):
            raise full
        assert caught.value.filename == str(tmp_path / name)
        full.filename = None
    named = OSError(errno.ENOSPC, "No space left on device", "mine")
    with pytest.raises(OSError, match="mine"), whole_file(tmp_path / "a"):
        raise named
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_held_once_and_only_as_long_as_the_block(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with hold(folder, "writing"):
        with pytest.raises(UsageError) as error, hold(folder, "writing"):
            pass
        assert str(error.value).splitlines()[0] == f"Another process is writing '{folder}'."
        (folder / "file").touch()
        discard_empty(folder)
        assert (folder / "file").exists()
    assert [path.name for path in folder.iterdir()] == ["file"]
    (folder / "file").unlink()
    with hold(folder, "writing"):
        discard_empty(folder)
    assert not folder.exists()


def test_a_removed_folder_is_gone_at_once(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    remove_folder(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []
