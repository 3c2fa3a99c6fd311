"""A metadata.jsonl with one image and two objects."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from flmm_core.errors import DataError
from tests.data.conftest import read


@pytest.fixture
def record() -> dict[str, Any]:
    return {
        "file_name": "a.png",
        "width": 8,
        "height": 6,
        "objects": {
            "phrases": [["a box", "the grey box"], ["a stripe"]],
            "segmentation": [
                [[0, 0, 4, 0, 4, 3, 0, 3]],
                {"size": [6, 8], "counts": [6, 6, 36]},
            ],
        },
    }


class File:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "metadata.jsonl"
        Image.new("RGB", (8, 6)).save(folder / "a.png")
        Image.new("RGB", (8, 6)).save(folder / "b.png")

    def write(self, *lines: Any) -> Path:
        texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
        self.path.write_text("".join(f"{text}\n" for text in texts))
        return self.path

    def fails(self, *lines: Any) -> str:
        with pytest.raises(DataError) as caught:
            read(f"jsonl:{self.write(*lines)}")
        assert caught.value.exit_code == 3
        return str(caught.value)


@pytest.fixture
def file(tmp_path: Path) -> File:
    return File(tmp_path)
