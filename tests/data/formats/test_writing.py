from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from flmm_core.data import rle
from flmm_core.data.formats.labelme import write_labelme
from flmm_core.data.formats.png import write_narratives
from flmm_core.data.formats.shared.writing import WholeFile, plain_caption, whole_folder


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


def test_a_whole_file_appears_at_the_end_or_never(tmp_path: Path) -> None:
    path = tmp_path / "a" / "lines"
    with WholeFile(path) as file:
        file.write(b"one")
        assert not path.exists()
        file.write(b"two")
    assert path.read_bytes() == b"onetwo"

    def write() -> None:
        with WholeFile(path) as file:
            file.write(b"three")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_bytes() == b"onetwo"
    assert len(list(path.parent.iterdir())) == 1


def test_a_plain_caption_names_every_object(drawn_images: Any) -> None:
    one, two = drawn_images[0][2]
    text = "".join(piece.text for piece in plain_caption([one, two, one]))
    assert text == "This image shows the red square, a ring and the red square."
    assert [piece.phrase for piece in plain_caption([one])] == [None, 0, None]


def test_what_a_format_cannot_say_is_refused(tmp_path: Path, drawn_images: Any) -> None:
    image, name, (square, ring) = drawn_images[0]
    nothing = replace(ring, mask=rle.empty(20, 30))
    with pytest.raises(ValueError, match=r"1.png: LabelMe has no empty shapes"):
        write_labelme(tmp_path, [(image, name, [square, nothing])])
    everywhere = replace(ring, mask=rle.encode(~rle.decode(ring.read_mask())))
    with pytest.raises(ValueError, match=r"1.png: two segments overlap"):
        write_narratives(tmp_path, [(image, name, [square, everywhere])])
    with pytest.raises(ValueError, match=r"1.png: a narrative is of one split"):
        write_narratives(tmp_path, [(image, name, [square, replace(ring, split="val")])])
    assert not list(tmp_path.rglob("*.json"))
