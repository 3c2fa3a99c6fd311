"""Which arguments are images and which are phrases, and where results of images are written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flmm_core.annotate.requests import find_requests, is_one_image, split_arguments
from flmm_core.errors import DataError, UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jpg", "b.jpg", "no ending", "in/a.jpg", "in/deep/c.PNG", "in/notes.txt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "phrases", "expected"),
    [
        (["a.jpg", "red ring", "a star"], [], (["a.jpg"], ["red ring", "a star"])),
        (["gone.jpg", "ring"], [], (["gone.jpg"], ["ring"])),
        (["in", "a dog?", "[sic]"], [], (["in"], ["a dog?", "[sic]"])),
        (["a.jpg", "b.jpg"], ["ring"], (["a.jpg", "b.jpg"], ["ring"])),
        (["a.jpg", "gone.jpg", "*.png"], ["ring "], (["a.jpg", "gone.jpg", "*.png"], ["ring"])),
        (["list.jsonl", "-"], [], (["list.jsonl", "-"], [])),
    ],
)
def test_arguments_that_can_be_told_apart(
    arguments: list[str], phrases: list[str], expected: object
) -> None:
    assert split_arguments(arguments, phrases) == expected


@pytest.mark.parametrize(
    "second",
    ["b.jpg", "gone.png", "GONE.JPG", "in", "no ending", "*.jpg", "x.jsonl", "-", "s3://b/c"],
)
def test_a_second_image_never_becomes_a_phrase(second: str) -> None:
    with pytest.raises(UsageError, match="may be meant as an image or as a phrase") as caught:
        split_arguments(["a.jpg", "red ring", second], [])
    assert f"'{second}'" in caught.value.asked
    assert '-p "a red ring"' in caught.value.repair


def test_a_phrase_never_becomes_an_image() -> None:
    with pytest.raises(UsageError, match="There is no image 'the star'") as caught:
        split_arguments(["a.jpg", "the star"], ["red ring"])
    assert "-p" in caught.value.repair


@pytest.mark.parametrize(
    ("arguments", "phrases", "said"),
    [
        (["a.jpg"], [], "There is no phrase to segment."),
        (["a.jpg", " "], [], "Phrase 1 is empty."),
        (["a.jpg"], ["ring", ""], "Phrase 2 is empty."),
        ([], ["ring"], "There is no image to segment."),
    ],
)
def test_what_is_missing(arguments: list[str], phrases: list[str], said: str) -> None:
    with pytest.raises(UsageError) as caught:
        split_arguments(arguments, phrases)
    assert caught.value.asked == said


def names(*sources: str, phrases: tuple[str, ...] = ("ring",), **more: object) -> dict[str, str]:
    found = find_requests(sources, phrases, **more)  # type: ignore[arg-type]
    return {one.name: one.path.as_posix() for one in found}


def test_folders_patterns_and_files_give_their_images_once() -> None:
    assert names("in") == {"a.jpg": "in/a.jpg", "deep/c.PNG": "in/deep/c.PNG"}
    assert names("in/**/*") == {"a.jpg": "in/a.jpg", "deep/c.PNG": "in/deep/c.PNG"}
    assert names("*.jpg", "a.jpg", "./in/../a.jpg") == {"a.jpg": "a.jpg", "b.jpg": "b.jpg"}
    Path("in/[1].jpg").write_bytes(b"")  # a name that is a pattern, too
    assert names("in/[1].jpg") == {"[1].jpg": "in/[1].jpg"}


def test_equal_names_of_different_folders_are_told_apart(folder: Path) -> None:
    assert names("a.jpg", "in/a.jpg", "b.jpg") == {
        "a.jpg": "a.jpg",
        "in/a.jpg": "in/a.jpg",
        "b.jpg": "b.jpg",
    }
    Path("other").mkdir()
    Path("other/A.JPG").write_bytes(b"")  # the same file on many disks
    assert names("in", "other") == {
        "in/a.jpg": "in/a.jpg",
        "deep/c.PNG": "in/deep/c.PNG",
        "other/A.JPG": "other/A.JPG",
    }
    Path("in/in").mkdir()
    Path("in/in/a.jpg").write_bytes(b"")
    assert len(names("in/in/a.jpg", "in", "a.jpg")) == 4


@pytest.mark.parametrize(("source", "said"), [("empty", "folder"), ("in/*.gif", "pattern")])
def test_a_folder_or_pattern_without_images_is_an_error(source: str, said: str) -> None:
    Path("empty").mkdir()
    with pytest.raises(DataError, match=said):
        find_requests([source], ["ring"])


def test_lines_bring_phrases_or_take_those_of_the_command(folder: Path) -> None:
    lines = [
        {"image": "a.jpg", "phrases": ["red ring", "star"]},
        {"file_name": "deep/c.PNG", "phrase": "dot"},
        {"image": "../b.jpg"},
        {"image": "a.jpg", "phrases": ["star", "square"]},
    ]
    text = "\n\n".join(map(json.dumps, lines)) + "\n"
    Path("in/list.jsonl").write_text(text)
    found = find_requests(["in/list.jsonl"], ["ring"])
    assert [(one.name, one.phrases) for one in found] == [
        ("a.jpg", ("red ring", "star", "square")),
        ("deep/c.PNG", ("dot",)),
        ("b.jpg", ("ring",)),
    ]
    assert [one.path.exists() for one in found] == [True] * 3
    with pytest.raises(DataError, match="no phrase for the image"):
        find_requests(["in/list.jsonl"], [])
    piped = [b"b.jpg\r\n", b"\n", b'{"image": "in/a.jpg", "phrases": ["star"]}\n']
    found = find_requests(["-"], ["ring"], piped)
    assert [(one.name, one.phrases) for one in found] == [
        ("b.jpg", ("ring",)),
        ("in/a.jpg", ("star",)),
    ]


@pytest.mark.parametrize(
    "line",
    ['{"image": "a.jpg"', "[1]", '{"phrases": ["x"]}', '{"image": 3}',
     '{"image": "a.jpg", "phrases": [" "]}', '{"image": "a.jpg", "phrases": 3}'],
)  # fmt: skip
def test_faulty_lines_are_told_by_number(line: str) -> None:
    Path("list.jsonl").write_text(f'{{"image": "b.jpg"}}\n{line}\n')
    with pytest.raises(DataError, match=r"(?i)line 2"):
        find_requests(["list.jsonl"], ["ring"])


@pytest.mark.parametrize(
    "arguments", [["missing.jpg"], ["in"], ["-"], ["a.jsonl"], ["*.jpg"], ["a.jpg", "b.jpg"], []]
)
def test_what_is_not_one_image_file(arguments: list[str]) -> None:
    Path("a.jsonl").write_text("{}")
    assert is_one_image(["a.jpg"])
    assert not is_one_image(arguments)
