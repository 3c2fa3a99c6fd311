"""Which phrases to segment in which images: files, folders, patterns, JSONL, stdin. No torch."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath
from unicodedata import normalize

from flmm_core.data.images import IMAGE_ENDINGS
from flmm_core.data.records import brief, expect, field, parse_json, read_lines, texts, unfit
from flmm_core.errors import DataError, Problems, UsageError

STDIN = "-"
LISTS = (".jsonl", ".ndjson")
"""Of files that list images and phrases, one JSON object a line."""
IMAGE_KEYS = ("image", "file_name", "path")
NEW_FORM = 'flmm ground a.jpg b.jpg -p "a red ring" -p "the star" --head RUN'
TOLD = 10
"""Faulty lines that are told of a list."""


@dataclass(frozen=True, slots=True)
class Request:
    """Phrases to segment in one image.

    Attributes:
        path: The image.
        phrases: At least one, none empty.
        name: A relative path with forward slashes, for what is written of it; unique in a list.
    """

    path: Path
    phrases: tuple[str, ...]
    name: str


def split_arguments(
    arguments: Sequence[str], phrases: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The images and the phrases of a command line, `phrases` being those given with -p.

    Without -p, the first argument is the image and all others are phrases, unless one of them
    could be an image as well.

    Raises:
        UsageError: An argument could be both, or neither; a phrase is empty or missing.
    """
    sources, said = list(arguments), list(phrases)
    if not sources:
        raise UsageError("There is no image to segment.", repair=f"For example: {NEW_FORM}")
    if not said and not all(map(_brings_phrases, sources)):
        sources, said = sources[:1], sources[1:]
        for word in filter(_may_be_images, said):
            raise UsageError(
                f"'{word}' may be meant as an image or as a phrase.",
                found="Without -p, only the first argument is an image, and all others are "
                "phrases.",
                repair=f"Put -p before each phrase, and all others are images: {NEW_FORM}",
            )
    elif phrases:
        for word in sources:
            if not _may_be_images(word) and not glob.has_magic(word):
                raise UsageError(
                    f"There is no image '{word}'.",
                    found="With -p, every argument without it is an image.",
                    repair=f"Put -p before each phrase: {NEW_FORM}",
                )
    for number, phrase in enumerate(said, start=1):
        if not phrase.strip():
            raise UsageError(f"Phrase {number} is empty.", repair="Give it at least one word.")
    if not said and not all(map(_brings_phrases, sources)):
        raise UsageError(
            "There is no phrase to segment.", repair=f"Put -p before each phrase: {NEW_FORM}"
        )
    return sources, [phrase.strip() for phrase in said]


def is_one_image(arguments: Sequence[str]) -> bool:
    """Whether a command line names one image file, and nothing else."""
    return (
        len(arguments) == 1 and not _brings_phrases(arguments[0]) and os.path.isfile(arguments[0])  # noqa: PTH113 (any name)
    )


def _brings_phrases(word: str) -> bool:
    return word == STDIN or word.lower().endswith(LISTS)


def _may_be_images(word: str) -> bool:
    """Whether an argument names an image, existing or not, or a collection of images."""
    if _brings_phrases(word) or "://" in word or os.path.exists(word):  # noqa: PTH110 (any name)
        return True
    if word.lower().endswith((*IMAGE_ENDINGS, ".gif")):
        return True
    return glob.has_magic(word) and bool(glob.glob(word, recursive=True))  # noqa: PTH207


def find_requests(
    sources: Sequence[str], phrases: Sequence[str], stdin: Iterable[bytes] = ()
) -> list[Request]:
    """One request per image, in the order of the sources.

    An image that is named several times gets all phrases of its requests.

    Args:
        sources: Images; folders, whose images are found at any depth; patterns (`*.jpg`,
            `**/*.png`); JSONL files with `{"image": ..., "phrases": [...]}` a line, where paths
            are relative to the file; and "-", which reads such lines, or paths, from `stdin`.
        phrases: For images that bring none.
        stdin: Its lines.

    Raises:
        DataError: A folder has no image, a pattern matches none, or lines are faulty.
    """
    found: dict[Path, Request] = {}
    for source in sources:
        for path, own, name in _listed(source, stdin):
            said = tuple(own or phrases)
            if not said:
                raise DataError(
                    f"There is no phrase for the image {path}.",
                    repair='Give phrases with -p, or in the list: "phrases": ["a red ring"].',
                )
            key = Path(os.path.realpath(path))
            known = found.setdefault(key, Request(path, said, name))
            found[key] = replace(known, phrases=tuple(dict.fromkeys((*known.phrases, *said))))
    return _named_apart(list(found.values()))


_Listed = tuple[Path, Sequence[str], str]
"""The path, own phrases and name of an image."""


def _listed(source: str, stdin: Iterable[bytes]) -> Iterator[_Listed]:
    path = Path(source)
    if source == STDIN:
        yield from _of_lines(stdin, Path(), "stdin")
    elif os.path.isdir(source):  # noqa: PTH112 (any name)
        inside = sorted(file for file in path.rglob("*") if _is_image(file))
        if not inside:
            raise DataError(
                f"There is no image in the folder {source}.",
                found=f"Looked for files that end in {', '.join(IMAGE_ENDINGS)}.",
            )
        for file in inside:
            yield file, (), file.relative_to(path).as_posix()
    elif source.lower().endswith(LISTS):
        yield from _of_lines(read_lines(path), path.parent, str(path))
    elif glob.has_magic(source) and not os.path.exists(source):  # noqa: PTH110 (any name)
        fixed = Path(*_before_magic(path))
        matches = sorted(Path(match) for match in glob.glob(source, recursive=True))  # noqa: PTH207
        if not any(map(_is_image, matches)):
            raise DataError(
                f"No image matches the pattern '{source}'.",
                found=f"It matches {len(matches)} files and folders; images end in "
                f"{', '.join(IMAGE_ENDINGS)}.",
            )
        for file in filter(_is_image, matches):
            yield file, (), file.relative_to(fixed).as_posix()
    else:
        yield path, (), path.name


def _is_image(path: Path) -> bool:
    return path.name.lower().endswith(IMAGE_ENDINGS) and path.is_file()


def _before_magic(path: Path) -> Iterator[str]:
    """The leading parts of a pattern that say which folder it is about."""
    for part in path.parent.parts:
        if glob.has_magic(part):
            return
        yield part


def _of_lines(lines: Iterable[bytes], folder: Path, where: str) -> Iterator[_Listed]:
    """The images of JSON lines, or of lines that are paths."""
    problems = Problems()
    read: list[_Listed] = []
    for number, line in enumerate(lines, start=1):
        if len(problems.found) == TOLD:
            break
        with problems.part():
            if line.lstrip()[:1] == b"{":
                read.append(_of_line(line, folder, f"line {number} of {where}"))
            elif line.strip() and folder == Path() and where == "stdin":
                path = Path(os.fsdecode(line.rstrip(b"\r\n")))
                read.append((path, (), path.name))
            elif line.strip():
                expect(parse_json(line, f"line {number} of {where}"), dict, f"line {number}")
    problems.check()
    if not read:
        raise DataError(f"There is no image in {where}.", found="It has no lines.")
    yield from read


def _of_line(line: bytes, folder: Path, where: str) -> _Listed:
    written, phrases = line_request(line, where)
    try:
        path = folder / written
        name = _inside(written) or path.name
    except ValueError as error:
        raise DataError(f"{brief(written)} on {where} is no path.", found=f"{error}.") from error
    return path, phrases, name


def line_request(line: bytes, where: str) -> tuple[str, tuple[str, ...]]:
    """The image and its own phrases, if any, of a JSON line; DataError if it is faulty."""
    record = expect(parse_json(line, where), dict, where)
    key = next((key for key in IMAGE_KEYS if key in record), IMAGE_KEYS[0])
    written = field(record, key, str, where)
    said = record.get("phrases", record.get("phrase"))
    if isinstance(said, str):
        said = [said]
    if said is not None and not isinstance(said, list):
        raise unfit(where, "phrases", said, "a list of phrases")
    return written, texts(said, "phrases", where) if said else ()


def _inside(written: str) -> str:
    """A path without what leads out of a folder: "../a/b.jpg" and "/a/b.jpg" are "a/b.jpg"."""
    path = PureWindowsPath(written) if "\\" in written else PurePosixPath(written)
    return "/".join(part for part in path.parts if part not in ("..", path.anchor))


def _named_apart(requests: list[Request]) -> list[Request]:
    """The same with unique names.

    Those that share a name, in whatever case, are named by their folders, too, and if that does
    not help, numbered.
    """
    alike: dict[str, list[int]] = {}
    for number, request in enumerate(requests):
        alike.setdefault(_folded(request.name), []).append(number)
    named = list(requests)
    for numbers in alike.values():
        if len(numbers) > 1:
            paths = [os.path.realpath(requests[number].path) for number in numbers]
            common = os.path.commonpath([os.path.dirname(path) for path in paths])  # noqa: PTH120
            for number, path in zip(numbers, paths, strict=True):
                name = Path(path).relative_to(common).as_posix()
                named[number] = replace(named[number], name=name)
    taken: set[str] = set()
    for number, request in enumerate(named):
        given, name, count = PurePosixPath(request.name), request.name, 1
        while _folded(name) in taken:
            count += 1
            name = str(given.with_name(f"{given.stem}-{count}{given.suffix}"))
        taken.add(_folded(name))
        named[number] = replace(request, name=name)
    return named


def _folded(name: str) -> str:
    return normalize("NFC", name).casefold()
