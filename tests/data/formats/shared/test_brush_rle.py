"""The brush's code, against streams written bit by bit as its package describes them."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flmm_core.data.formats.shared.brush_rle import decode_brush
from tests.data.formats.shared.test_polygons import masks


def encode(alpha: NDArray[Any], sizes: list[int], repeat_from: int = 5) -> bytes:
    """RGBA pixels of a (H, W) uint8 opacity as a stream; short runs are written value by value."""
    color = (alpha > 0) * np.uint8(200)
    values = np.dstack([color, color, color, alpha]).ravel().tolist()
    header = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    parts, own = [header], []

    def length(count: int) -> str:
        which = next(n for n, size in enumerate(sizes) if count <= 1 << size)
        return f"{which:02b}{count - 1:0{sizes[which]}b}"

    def flush() -> None:
        for start in range(0, len(own), 1 << sizes[-1]):
            chunk = own[start : start + (1 << sizes[-1])]
            parts.append(f"0{length(len(chunk))}" + "".join(f"{value:08b}" for value in chunk))
        own.clear()

    for value, group in groupby(values):
        count = len(list(group))
        if count < repeat_from:
            own.extend([value] * count)
            continue
        flush()
        while count:
            run = min(count, 1 << sizes[-1])
            parts.append(f"1{length(run)}{value:08b}")
            count -= run
    flush()
    bits = "".join(parts)
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)


@given(masks, st.sampled_from([[3, 4, 8, 16], [1, 2, 3, 5], [4, 6, 9, 11]]), st.integers(1, 12))
def test_what_is_not_transparent_is_the_mask(
    mask: NDArray[Any], sizes: list[int], repeat_from: int
) -> None:
    alpha = mask * np.uint8(77)
    found = decode_brush(encode(alpha, sizes, repeat_from), mask.shape[:2])
    np.testing.assert_array_equal(found, mask)


def test_a_code_of_the_packages_own() -> None:
    """A 1 x 2 image, transparent and opaque, with the header that its encoder writes."""
    header = "00000000000000000000000000001000001110010001101111111"
    runs = "10001100000000" + "10001111111111"
    bits = header + runs + "0" * (-len(header + runs) % 8)
    code = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8))
    assert decode_brush(code, (1, 2)).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda code: code[:-2], "cut off"),
        (lambda code: b"", "cut off"),
        (lambda code: code[:3] + b"\xff" + code[4:], "it is of 63 pixels, the image has 12"),
        (lambda code: b"\xff" * len(code), "pixels, the image has 12"),
    ],
)
def test_a_broken_code(change: Any, message: str) -> None:
    code = encode(np.eye(3, 4, dtype=np.uint8), [3, 4, 8, 16])
    with pytest.raises(ValueError, match=message):
        decode_brush(change(code), (3, 4))


def test_runs_that_are_longer_than_the_image() -> None:
    code = encode(np.zeros((3, 4), np.uint8), [3, 4, 8, 16])
    bits = f"{int.from_bytes(code):0{8 * len(code)}b}"
    broken = bits[:53] + "1" + "11" + "1" * 16 + bits[72:]
    with pytest.raises(ValueError, match="longer than the image"):
        decode_brush(int(broken, 2).to_bytes(len(code)), (3, 4))
