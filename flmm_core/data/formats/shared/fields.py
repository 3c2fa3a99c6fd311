"""Typed look-ups in what JSON and pickle files hold, with errors that name the place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from flmm_core.errors import DataError

T = TypeVar("T")

MAX_PIXELS = 100_000_000
"""The largest image that is read."""

KIND_NAMES: Mapping[type, str] = {
    int: "an integer",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}


def mapping(value: Any, where: str) -> dict[Any, Any]:
    """`value` if it is a dict; else a DataError: "`where` is not a mapping"."""
    if not isinstance(value, dict):
        raise DataError(f"{sentence(where)} is not a mapping.", found=f"It is {brief(value)}.")
    return value


def field(record: Mapping[Any, Any], key: str, kind: type[T], where: str) -> T:
    """`record[key]`, which must be a `kind`; `where` names the record in the DataError."""
    if key not in record:
        raise DataError(
            f"{sentence(where)} has no '{key}'.",
            found=f"Its keys: {', '.join(map(str, record)) or 'none'}.",
            repair="Add the key, or get an unchanged copy of the file.",
        )
    value = record[key]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DataError(
            f"{sentence(where)} has {brief(value)} for '{key}'.",
            found=f"Expected {KIND_NAMES.get(kind, kind.__name__)}.",
        )
    return value


def image_size(
    record: Mapping[Any, Any], where: str, keys: tuple[str, str] = ("height", "width")
) -> tuple[int, int]:
    """(height, width) of a record, both at least 1 and no larger than an image can be.

    Raises:
        DataError: They are not; or they are no integers.
    """
    height, width = (field(record, key, int, where) for key in keys)
    if height < 1 or width < 1:
        raise DataError(
            f"{sentence(where)} has the size {height} x {width} (height x width).",
            found="Both must be at least 1.",
        )
    if height * width > MAX_PIXELS:
        raise DataError(
            f"{sentence(where)} has the size {height} x {width} (height x width).",
            found=f"An image has at most {MAX_PIXELS / 1e6:g} megapixels.",
        )
    return height, width


def sentence(where: str) -> str:
    """`where` with a capital letter, to begin a sentence with."""
    return where[:1].upper() + where[1:]


def brief(value: Any) -> str:
    """`repr(value)`, cut so that an error stays readable."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
