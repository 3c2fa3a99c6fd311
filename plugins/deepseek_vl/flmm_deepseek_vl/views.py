"""Where DeepSeek-VL's image tokens lie on the image. Plain numbers only.

The processor resizes the longest side to `image_size`, pads the other side to a square with
the image in the middle, and the model makes one token of each patch. So the one view has
always the same shape, and reaches beyond the image where it shows padding.
"""

from __future__ import annotations

Rows = list[list[int]]
Box = tuple[float, float, float, float]


def grid_shape(image_size: int, patch_size: int) -> tuple[int, int]:
    """(h, w) in tokens of every image; a rest smaller than a patch is not seen."""
    return image_size // patch_size, image_size // patch_size


def token_rows(grid_hw: tuple[int, int]) -> Rows:
    """Which image token (counted from the first) each cell is: row by row."""
    h, w = grid_hw
    return [list(range(r * w, (r + 1) * w)) for r in range(h)]


def resized_hw(image_hw: tuple[int, int], image_size: int, min_size: int) -> tuple[int, int]:
    """Pixels that the image takes on the square, (h, w); rounded as the processor rounds."""
    height, width = image_hw
    scale = image_size / max(height, width)
    return max(round(height * scale), min_size), max(round(width * scale), min_size)


def image_box(image_hw: tuple[int, int], image_size: int, patch_size: int, min_size: int) -> Box:
    """(y0, x0, y1, x1) of the grid, in fractions of the image's height and width."""
    height, width = resized_hw(image_hw, image_size, min_size)
    top, left = (image_size - height) // 2, (image_size - width) // 2
    seen = image_size // patch_size * patch_size
    return -top / height, -left / width, (seen - top) / height, (seen - left) / width
