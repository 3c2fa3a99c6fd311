"""Small text files that people write by hand: lists, CSV tables and YAML."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import yaml

from flmm_core.config.yaml_files import parse_yaml
from flmm_core.data.records import decode, read_bytes, read_json
from flmm_core.errors import DataError

TABLE_ENDINGS = (".csv", ".json", ".yaml", ".yml")
"""Of what `read_table` reads."""


def read_text(path: Path) -> str:
    """A text file in any encoding that `decode` knows; DataError if it is none."""
    return decode(read_bytes(path), f"the file {path}")


def read_yaml(path: Path) -> Any:
    """The content of a YAML file; DataError if it cannot be read."""
    try:
        return parse_yaml(read_text(path))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        lines = " ".join(str(error).split())
        raise DataError(f"The file {path} is not YAML.", found=f"{lines}.") from error


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by its header; commas, semicolons or tabs part the columns."""
    text = read_text(path)
    first = text.split("\n", 1)[0]
    separator = max(",;\t", key=first.count)
    try:
        rows = list(csv.DictReader(text.splitlines(), delimiter=separator, strict=True))
    except csv.Error as error:
        raise DataError(f"The file {path} is not a CSV table.", found=f"{error}.") from error
    return [
        {str(key).strip(): str(value or "").strip() for key, value in row.items() if key}
        for row in rows
        if any(row.values())
    ]


def read_table(path: Path) -> Any:
    """The content of a CSV, JSON or YAML file; of CSV a list of rows."""
    ending = path.suffix.lower()
    if ending == ".csv":
        return read_csv(path)
    return read_json(path) if ending == ".json" else read_yaml(path)
