"""The geometry of LLaVA-Next's image tokens, in plain numbers.

The model sees an image twice. `coarse`: resized to one square tile, n x n tokens. `fine`: resized
to the best of several canvases of whole tiles, padded, cut into tiles, and reassembled; whole
rows or columns of padding are then dropped, and a newline token ends each row:

    [coarse: n x n][fine row 0: w tokens][newline][fine row 1: w tokens][newline] ...

The remaining cells do not cover the image exactly: the image is resized to whole pixels, rounded
up, and padding is dropped in whole cells, rounded down. `fine_box` is the box of the cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Rows = list[list[int]]
Box = tuple[float, float, float, float]
Size = tuple[int, int]

COARSE_BOX: Box = (0.0, 0.0, 1.0, 1.0)


def best_canvas(image_hw: Size, canvases: Sequence[Sequence[int]]) -> Size:
    """The canvas (H, W) that keeps the most pixels of the image, then the one that wastes fewest.

    Floats on purpose, here and in `resized_hw`: the processor uses them, and their rounding
    decides the canvas and with it the number of tokens.
    """
    height, width = image_hw

    def merit(canvas: Sequence[int]) -> tuple[int, int]:
        canvas_h, canvas_w = canvas
        scale = min(canvas_w / width, canvas_h / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - canvas_h * canvas_w

    canvas_h, canvas_w = max(canvases, key=merit)
    return canvas_h, canvas_w


def resized_hw(image_hw: Size, canvas_hw: Size) -> Size:
    """(h, w) in pixels of the resized image, in the center of the canvas."""
    (height, width), (canvas_h, canvas_w) = image_hw, canvas_hw
    scale_h, scale_w = canvas_h / height, canvas_w / width
    if scale_w < scale_h:
        return min(math.ceil(height * scale_w), canvas_h), canvas_w
    return canvas_h, min(math.ceil(width * scale_h), canvas_w)


def dropped_cells(image_hw: Size, canvas_cells: Size) -> Size:
    """(rows, columns) of padding that the model drops at each end of the canvas."""
    (height, width), (cells_h, cells_w) = image_hw, canvas_cells
    if width * cells_h > cells_w * height:
        return (cells_h - height * cells_w // width) // 2, 0
    return 0, (cells_w - width * cells_h // height) // 2


def fine_shape(image_hw: Size, canvas_hw: Size, patch_size: int) -> Size:
    """(h, w) in tokens of the fine view, without newline tokens."""
    cells_h, cells_w = canvas_hw[0] // patch_size, canvas_hw[1] // patch_size
    rows, columns = dropped_cells(image_hw, (cells_h, cells_w))
    return cells_h - 2 * rows, cells_w - 2 * columns


def fine_box(image_hw: Size, canvas_hw: Size, patch_size: int) -> Box:
    """(y0, x0, y1, x1) of the fine grid, in fractions of the image's height and width."""
    height, width = resized_hw(image_hw, canvas_hw)
    top, left = (canvas_hw[0] - height) // 2, (canvas_hw[1] - width) // 2
    cells = canvas_hw[0] // patch_size, canvas_hw[1] // patch_size
    rows, columns = dropped_cells(image_hw, cells)
    return (
        (rows * patch_size - top) / height,
        (columns * patch_size - left) / width,
        ((cells[0] - rows) * patch_size - top) / height,
        ((cells[1] - columns) * patch_size - left) / width,
    )


def coarse_rows(side: int) -> Rows:
    """The index of each coarse cell among the image tokens."""
    return [list(range(r * side, (r + 1) * side)) for r in range(side)]


def fine_rows(grid_hw: Size, first: int) -> Rows:
    """The same for the fine view, whose first token is `first`; newline tokens are skipped."""
    h, w = grid_hw
    return [list(range(first + r * (w + 1), first + r * (w + 1) + w)) for r in range(h)]


def token_count(side: int, fine_hw: Size) -> int:
    """The number of image tokens, with newline tokens."""
    return side * side + fine_hw[0] * (fine_hw[1] + 1)
