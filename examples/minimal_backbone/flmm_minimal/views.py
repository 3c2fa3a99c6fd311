"""Where the image tokens lie on the picture: all geometry, in plain numbers.

The processor brings the shortest side to `resized` pixels and cuts a square of `cropped` pixels
out of the middle; the model makes one token of each patch of it, row by row.
"""

from __future__ import annotations


def picture_box(
    picture_hw: tuple[int, int], resized: int, cropped: int
) -> tuple[float, float, float, float]:
    """(y0, x0, y1, x1) of the square, in fractions of the picture's height and width."""
    shortest = min(picture_hw)
    height, width = (resized * side // shortest for side in picture_hw)
    top, left = (height - cropped) // 2, (width - cropped) // 2
    return top / height, left / width, (top + cropped) / height, (left + cropped) / width
