"""The geometry of DeepSeek-VL's image tokens, in plain numbers.

The processor resizes the longest side to a number of pixels and pads the image to a centered
square; the model makes one token of each patch. So the single view always has the same shape, and
its box extends beyond the image where it shows padding. The hybrid kind makes a larger square for
its second encoder, and the first one's out of that: both lie at the same place.
"""

from __future__ import annotations

Rows = list[list[int]]
Box = tuple[float, float, float, float]


def grid_shape(image_size: int, patch_size: int) -> tuple[int, int]:
    """(h, w) in tokens; pixels beyond the last whole patch are not seen."""
    return image_size // patch_size, image_size // patch_size


def token_rows(grid_hw: tuple[int, int]) -> Rows:
    """The index of each cell among the image tokens, row by row."""
    h, w = grid_hw
    return [list(range(r * w, (r + 1) * w)) for r in range(h)]


def resized_hw(
    image_hw: tuple[int, int], square: int, min_size: int, *, cut: bool = False
) -> tuple[int, int]:
    """(h, w) in pixels of the resized image, within a square of `square` pixels.

    Rounded as transformers' processor does; with `cut` as DeepSeek's own, which cuts off fractions:
    333 x 500 becomes 256 x 384 or 255 x 384.
    """
    height, width = image_hw
    longest = max(height, width)
    if cut:
        h, w = int(height / longest * square), int(width / longest * square)
    else:
        scale = square / longest
        h, w = round(height * scale), round(width * scale)
    return max(h, min_size), max(w, min_size)


def image_box(
    image_hw: tuple[int, int], square: int, seen: float, min_size: int, *, cut: bool = False
) -> Box:
    """(y0, x0, y1, x1) of the grid, in fractions of the image's height and width.

    Args:
        image_hw: Of the image in pixels.
        square: The pixels of a side of the padded square.
        seen: The part of it that whole patches cover, 0 to 1.
        min_size: As `cut`, see `resized_hw`.
    """
    height, width = resized_hw(image_hw, square, min_size, cut=cut)
    top, left = (square - height) // 2, (square - width) // 2
    end = square * seen
    return -top / height, -left / width, (end - top) / height, (end - left) / width
