"""Typed look-ups in JSON and pickle files, with errors that name the file and the place in it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from reprlib import Repr
from typing import Any, TypeVar

from flmm_core.data.findings import Findings
from flmm_core.errors import DataError, shortened
from flmm_core.images import MAX_PIXELS

T = TypeVar("T")
Record = Mapping[Any, Any]

KIND_NAMES = {int: "an integer", str: "a string", list: "a list", dict: "a mapping"}
RELEASE = "Get an unchanged copy of the file."


def read_bytes(path: Path) -> bytes:
    """The contents of a file; DataError if it cannot be read."""
    return b"".join(read_lines(path))


def read_lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, one at a time; DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            yield from file
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read.", found=f"{error.strerror or error}."
        ) from error


def read_json(path: Path, other: str = "") -> Any:
    """The contents of a JSON file; DataError if it cannot be read, or see `parse_json`."""
    return parse_json(read_bytes(path), f"the file {path}", other)


def parse_json(data: bytes, where: str, other: str = "") -> Any:
    """JSON in any encoding that `decode` knows; DataError if it is cut off."""
    try:
        return json.loads(decode(data, where, other))
    except (ValueError, RecursionError) as error:
        raise _cut_off(where, error) from error


def decode(data: bytes, where: str, other: str = "") -> str:
    """The text of a JSON file or line, without a byte order mark.

    It is in UTF-8, UTF-16 or UTF-32; else in the encoding `other`, by default in GB 18030 (in which
    older tools save on Chinese Windows) if that gives ordinary Chinese.

    Raises:
        DataError: It is in another encoding, or cut off; `where` names it.
    """
    try:
        return data.decode(json.detect_encoding(data))
    except UnicodeDecodeError as error:
        failed = error
    if failed.reason in ("unexpected end of data", "truncated data"):
        raise _cut_off(where, failed) from failed
    with suppress(UnicodeDecodeError):
        text = data.decode(other or "gb18030")
        if other or _is_chinese(text):
            return text
    raise DataError(
        f"{sentence(where)} is not in UTF-8.",
        found=f"{failed}.",
        repair="Save it as UTF-8.",
    ) from failed


def _is_chinese(text: str) -> bool:
    """Whether most characters beyond ASCII are among the 6,763 common ones of GB 2312.

    What European text becomes is not: an accent and the letter after it give a rare one.
    """
    beyond = [character for character in text if not character.isascii()]
    known = "".join(beyond).encode("gb2312", "ignore")
    return len(known) > len(beyond)  # two bytes each: more than half are known


def _cut_off(where: str, error: Exception) -> DataError:
    return DataError(
        f"{sentence(where)} is not whole JSON.",
        found=f"{error}.",
        repair="It may be cut off; download, copy or write it again.",
    )


def expect(value: Any, kind: type[T], where: str) -> T:
    """`value` if it is a dict or list; otherwise a DataError: "`where` is not a mapping"."""
    if not isinstance(value, kind):
        raise DataError(
            f"{sentence(where)} is not {KIND_NAMES[kind]}.", found=f"It is {brief(value)}."
        )
    return value


def field(record: Any, key: str, kind: type[T], where: str) -> T:
    """`record[key]`, which must be a `kind`; `where` names the record in the DataError."""
    if key not in expect(record, dict, where):
        raise DataError(
            f"{sentence(where)} has no '{key}'.",
            found=f"Its keys: {shortened(', '.join(map(str, record)), 300) or 'none'}.",
            repair="Add the key, or get an unchanged copy of the file.",
        )
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise unfit(where, key, value, KIND_NAMES.get(kind, kind.__name__))
    return value


def texts(value: Any, key: str, where: str) -> tuple[str, ...]:
    """A list of strings, at least one and none empty, without the white space around them."""
    if (
        not isinstance(value, list)
        or not value
        or not all(isinstance(text, str) and text.strip() for text in value)
    ):
        raise unfit(where, key, value, "a list of strings, at least one and none empty")
    return tuple(text.strip() for text in value)


def unfit(where: str, key: str, value: Any, expected: str) -> DataError:
    """The error of a value that is not what its key asks for."""
    return DataError(
        f"{sentence(where)} has {brief(value)} for '{key}'.", found=f"Expected {expected}."
    )


def is_finite_number(value: Any) -> bool:
    """Whether it is a number that a float can hold."""
    try:
        return type(value) in (int, float) and math.isfinite(value)
    except OverflowError:  # an integer of hundreds of digits
        return False


def image_size(
    record: Record, where: str, keys: tuple[str, str] = ("height", "width")
) -> tuple[int, int]:
    """(H, W) of a record, both at least 1 and no larger than an image can be; else a DataError."""
    height, width = (field(record, key, int, where) for key in keys)
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise DataError(
            f"{sentence(where)} has the size {height} x {width} (height x width).",
            found=f"Both must be at least 1, and an image has at most {MAX_PIXELS / 1e6:g} "
            "megapixels.",
        )
    return height, width


def records_by_id(
    records: Iterable[Any], what: str, place: str, findings: Findings, id_key: str = "id"
) -> dict[int, Record]:
    """Records by their ids, of one id the first; `what` and `place` name them in messages.

    Records without an id and ids that occur twice are faults.
    """
    found: dict[int, Record] = {}
    for number, record in enumerate(records):
        with findings.part():
            where = f"{what} number {number} of {place}"
            its_id = field(record, id_key, int, where)
            if its_id in found:
                raise DataError(
                    f"The {what} {id_key.removeprefix(f'{what}_')} {its_id} occurs twice in "
                    f"{place}.",
                    repair="Ids must be unique; get an unchanged copy of the file.",
                )
            found[its_id] = record
    return found


def find_file(
    folders: Iterable[Path], names: Sequence[str], asked: str, repair: str, found: str = ""
) -> Path:
    """The first of the names that is a file in one of the folders.

    If there is none, the DataError "`asked` is missing" lists all paths that were tried, after
    `found`.
    """
    folders = list(folders)
    path = first_file(folders, names)
    if path is None:
        tried = dict.fromkeys(str(folder / name) for folder in folders for name in names)
        raise DataError(
            f"{asked} is missing.",
            found="\n  ".join([f"{found}Looked for:", *tried]),
            repair=repair,
        )
    return path


def first_file(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """The first of the names that is a file in one of the folders."""
    for path in (folder / name for folder in folders for name in names):
        with suppress(OSError, ValueError):  # names that no file can have: too long, with a zero
            if path.is_file():
                return path
    return None


def sentence(where: str) -> str:
    """`where` with a capital letter, to begin a sentence with."""
    return where[:1].upper() + where[1:]


class _Brief(Repr):
    """Of nested lists the outer ones only: all of them may take forever."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxlong, self.maxother = 4, 200, 60, 200
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 30


def brief(value: Any) -> str:
    """`repr(value)`, cut so that an error stays readable."""
    text = _Brief().repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
