"""The geometry of the image tokens, in plain numbers.

The processor resizes the shortest side to `resized` pixels and crops a centered square of
`cropped` pixels; the model makes one token of each patch of it, row by row.
"""

from __future__ import annotations


def image_box(
    image_hw: tuple[int, int], resized: int, cropped: int
) -> tuple[float, float, float, float]:
    """(y0, x0, y1, x1) of the square, in fractions of the image's height and width."""
    shortest = min(image_hw)
    height, width = (resized * side // shortest for side in image_hw)
    top, left = (height - cropped) // 2, (width - cropped) // 2
    return top / height, left / width, (top + cropped) / height, (left + cropped) / width
