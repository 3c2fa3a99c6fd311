"""docs/training.md: its arithmetic is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from flmm_core.feature_cache.codec import MapType, Packing

PAGE = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


@pytest.mark.parametrize("maps", ["float32", "float16", "uint8"])
def test_the_sizes_of_the_page_follow_from_the_packing(maps: MapType) -> None:
    packing, phrases = Packing(maps, hidden=True), 42_404
    row = next(line for line in PAGE.splitlines() if line.startswith(f"| `--maps {maps}` |"))
    shown = [float(text) for text in re.findall(r"([\d.]+) GB", row)]
    import torch

    sizes = [
        phrases * 576 * packing.map_bytes(23 * 17),
        phrases * 4 * 36 * 2048 * packing.hidden_type(torch.bfloat16).itemsize,
        16_994 * 256 * 64 * 64 * packing.embedding_type.itemsize,
    ]
    wanted = [size / 1e9 for size in (*sizes, sum(sizes))]
    assert shown == pytest.approx(wanted, rel=0.03)
