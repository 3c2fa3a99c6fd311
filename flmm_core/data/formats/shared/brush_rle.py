"""The run-length code of Label Studio's brush (the npm package rle-pack).

A stream of bits, highest first: 32 for the number of values, 5 for the bits of a value less one,
four times 4 for the bits of a run's length less one; then runs: 1 bit for one value repeated or 0
for values of their own, 2 for which of the four sizes its length has, the length less one, and the
value or values. The values are the image's pixels as RGBA, row by row; opaque ones are the mask.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_HEADER = 32 + 5 + 4 * 4


def decode_brush(code: bytes, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels that are not transparent.

    Raises:
        ValueError: The code is cut off, or is not of an image of this size.
    """
    bits = _Bits(code)
    number, value_size = bits.read(32), bits.read(5) + 1
    sizes = [bits.read(4) + 1 for _ in range(4)]
    if number != 4 * image_hw[0] * image_hw[1]:
        raise ValueError(
            f"it is of {number // 4} pixels, the image has {image_hw[0] * image_hw[1]}"
        )
    marked = np.zeros(number, dtype=np.bool_)
    place = 0
    while place < number:
        repeated = bits.read(1)
        end = place + bits.read(sizes[bits.read(2)]) + 1
        if end > number:
            raise ValueError("its runs are longer than the image")
        if repeated:
            marked[place:end] = bits.read(value_size) != 0
        else:
            marked[place:end] = bits.read_many(end - place, value_size)
        place = end
    return marked.reshape(*image_hw, 4)[..., 3]


class _Bits:
    def __init__(self, code: bytes) -> None:
        self._code, self._at = code, 0

    def read(self, size: int) -> int:
        """The next `size` bits as a number."""
        end = self._at + size
        if end > 8 * len(self._code):
            raise ValueError("it is cut off")
        whole = int.from_bytes(self._code[self._at // 8 : -(-end // 8)])
        self._at = end
        return whole >> (-end % 8) & ((1 << size) - 1)

    def read_many(self, count: int, size: int) -> NDArray[np.bool_]:
        """(count,) bool: which of the next `count` numbers of `size` bits are not zero."""
        end = self._at + count * size
        if end > 8 * len(self._code):
            raise ValueError("it is cut off")
        part = np.frombuffer(self._code[self._at // 8 : -(-end // 8)], dtype=np.uint8)
        first = self._at % 8
        self._at = end
        bits = np.unpackbits(part)[first : first + count * size]
        return np.asarray(bits.reshape(count, size).any(axis=1), dtype=np.bool_)
