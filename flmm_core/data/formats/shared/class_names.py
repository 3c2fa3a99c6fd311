"""Lists of classes as people and tools write them: names by number or by color."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flmm_core.data.formats.shared.label_maps import color_code
from flmm_core.data.formats.shared.tables import read_table, read_text
from flmm_core.data.records import brief
from flmm_core.errors import DataError

NAME_KEYS = ("name", "class", "label", "class_name", "label_name", "title", "category")
NUMBER_KEYS = ("value", "id", "number", "index", "class_id", "label_id", "category_id", "pixel")
BAND_KEYS = (("r", "g", "b"), ("red", "green", "blue"))
COLOR_KEYS = ("color", "colour", "rgb", "color_rgb")


@dataclass
class ClassNames:
    """Names by number, and by `color_code`; either may be empty."""

    numbers: dict[int, str] = field(default_factory=dict)
    colors: dict[int, str] = field(default_factory=dict)


def read_class_names(path: Path) -> ClassNames:
    """The classes of a file.

    A text file has one name a line, from 0 on; JSON and YAML a list of names or records, or a
    mapping of numbers to names or of names to numbers; a CSV file a line a class with a column for
    the name and one for the number, or three for the color ("name,r,g,b"). What has neither is
    numbered from 0 on.

    Raises:
        DataError: It cannot be read, or a class has no name, or neither a number nor a color.
    """
    if path.suffix.lower() == ".txt":
        lines = [line.strip() for line in read_text(path).splitlines()]
        # LabelMe's list begins with this name for -1, which its masks store as 255.
        listed = enumerate(lines, start=-1 if lines[:1] == ["__ignore__"] else 0)
        return ClassNames({number: name for number, name in listed if name})
    content, found = read_table(path), ClassNames()
    if isinstance(content, Mapping):
        keys = ("names", "classes", "labels")
        content = next((content[key] for key in keys if key in content), content)
    if isinstance(content, list):
        for place, entry in enumerate(content):
            _add(found, place, entry, f"the class {place} of {path}", False)
    elif isinstance(content, Mapping):
        for key, entry in content.items():
            _add(found, key, entry, f"the class {brief(key)} of {path}", True)
    if not found.numbers and not found.colors:
        raise DataError(
            f"The file {path} names no class.",
            found="Expected names by number or by color; see docs/data.md.",
        )
    return found


def _add(found: ClassNames, key: Any, value: Any, where: str, keyed: bool) -> None:
    if isinstance(value, Mapping):
        row = {str(k).strip().lower(): v for k, v in value.items()}
        name, color = pick(row, NAME_KEYS), _color(row)
        number = pick(row, NUMBER_KEYS)
        if number is None and color is None:
            number = key
    elif keyed and whole_number(key) is None:  # {"red mug": 1}
        name, number, color = key, value, None
    else:
        name, number, color = value, key, None
    whole = whole_number(number)
    text = "" if name is None else str(name).strip()
    if not text or (color is None and whole is None):
        raise DataError(
            f"{where[:1].upper()}{where[1:]} has no name, or neither a number nor a color.",
            found=f"It is {brief(value)}.",
        )
    if whole is not None:
        found.numbers[whole] = text
    if color is not None:
        found.colors[color] = text


def _color(row: Mapping[str, Any]) -> int | None:
    listed = pick(row, COLOR_KEYS)
    if isinstance(listed, str):
        text = listed.strip().strip("()[]")
        if text.startswith("#") and len(text) == 7:
            listed = [int(text[at : at + 2], 16) for at in (1, 3, 5)]
        else:
            listed = text.replace(",", " ").split()
    if listed is None:
        listed = next(([row[k] for k in keys] for keys in BAND_KEYS if set(keys) <= set(row)), [])
    bands = [whole_number(band) for band in listed] if isinstance(listed, list) else []
    if len(bands) != 3 or any(band is None or not 0 <= band <= 255 for band in bands):
        return None
    return color_code(*(int(band or 0) for band in bands))


def pick(row: Mapping[str, Any], keys: tuple[str, ...]) -> Any:
    """The value of the first of the keys that is there and not empty; None if there is none."""
    return next((row[key] for key in keys if row.get(key) not in (None, "")), None)


def whole_number(value: Any) -> int | None:
    """A whole number, or text of one; None for anything else."""
    if type(value) is int:
        return value
    text = value.strip() if isinstance(value, str) else ""
    return int(text) if text.isascii() and text.lstrip("-").isdigit() and len(text) < 10 else None
