"""Files that annotations are in or name, with errors that name the file and the place in it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flmm_core.errors import DataError


def read_json(path: Path, encodings: Sequence[str] = ("utf-8",)) -> Any:
    """What a JSON file holds, in the first of the encodings that its bytes allow.

    Raises:
        DataError: The file is missing, in none of the encodings, or cut off.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read.", found=f"{error.strerror or error}."
        ) from error
    for encoding in encodings:
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError as error:
            failed: Exception = error
            continue
        try:
            return json.loads(text)
        except (ValueError, RecursionError) as error:
            failed = error
            break
    raise DataError(
        f"The file {path} is not whole JSON.",
        found=f"{failed}.",
        repair="The file may be cut off; download or copy it again.",
    ) from failed


def is_file(path: Path) -> bool:
    """Whether there is a file; not either if nothing can have such a name (too long, a zero)."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False
