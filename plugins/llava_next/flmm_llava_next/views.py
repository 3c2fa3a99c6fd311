"""The geometry of LLaVA's image tokens, in plain numbers.

LLaVA-1.5 sees an image once, as a square: padded, cropped or squashed (`padded_box`, `cropped_box`,
`squashed_box`).

LLaVA-Next and LLaVA-OneVision see it twice. `coarse`: resized to one square tile, n x n tokens.
`fine`: resized to the best of several canvases of whole tiles, padded, cut into tiles, and
reassembled; whole rows or columns of padding are then dropped, OneVision resamples a large view to
fewer cells, and a newline token ends each row:

    [coarse: n x n][fine row 0: w tokens][newline][fine row 1: w tokens][newline] ...

The remaining cells do not cover the image exactly: the image is resized to whole pixels, rounded
up, and padding is dropped in whole cells, rounded down. `fine_box` is the box of the cells.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

Rows = list[list[int]]
Box = tuple[float, float, float, float]
Size = tuple[int, int]


class Tile(NamedTuple):
    """The square that the vision encoder takes.

    Attributes:
        pixels: Its side.
        patch: The side of a patch; pixels beyond the last whole patch are not seen.
    """

    pixels: int
    patch: int

    @property
    def side(self) -> int:
        """Its side in tokens."""
        return self.pixels // self.patch

    @property
    def seen(self) -> int:
        """The pixels of its side that are seen."""
        return self.side * self.patch


# --- LLaVA-1.5 ----------------------------------------------------------------------------------


def padded_box(image_hw: Size, tile: Tile) -> Box:
    """(y0, x0, y1, x1) of the grid where the image is padded to a centered square."""
    longest = max(image_hw)
    seen = longest * tile.seen / tile.pixels
    (height, width), (top, left) = image_hw, ((longest - side) // 2 for side in image_hw)
    return -top / height, -left / width, (seen - top) / height, (seen - left) / width


def cropped_box(image_hw: Size, shortest: int, tile: Tile) -> Box:
    """The same where the shortest side is resized to `shortest` pixels and a square is cut out."""
    height, width = (int(shortest * side / min(image_hw)) for side in image_hw)
    top, left = (height - tile.pixels) // 2, (width - tile.pixels) // 2
    return top / height, left / width, (top + tile.seen) / height, (left + tile.seen) / width


def squashed_box(tile: Tile) -> Box:
    """The same where the image is resized to a square whatever its sides."""
    return 0.0, 0.0, tile.seen / tile.pixels, tile.seen / tile.pixels


# --- LLaVA-Next and LLaVA-OneVision -------------------------------------------------------------


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


def canvas_cells(canvas_hw: Size, tile: Tile) -> Size:
    """(h, w) in tokens of the reassembled tiles."""
    height, width = (side // tile.pixels * tile.side for side in canvas_hw)
    return height, width


def dropped_cells(image_hw: Size, cells_hw: Size) -> Size:
    """(rows, columns) of padding that the model drops at each end of the canvas."""
    (height, width), (cells_h, cells_w) = image_hw, cells_hw
    if width * cells_h > cells_w * height:
        return (cells_h - height * cells_w // width) // 2, 0
    return 0, (cells_w - width * cells_h // height) // 2


def fine_shape(image_hw: Size, canvas_hw: Size, tile: Tile, most_tiles: int | None = None) -> Size:
    """(h, w) in tokens of the fine view, without newline tokens.

    With `most_tiles` a view of clearly more cells is resampled to as many as those tiles have.
    """
    cells_h, cells_w = canvas_cells(canvas_hw, tile)
    rows, columns = dropped_cells(image_hw, (cells_h, cells_w))
    h, w = cells_h - 2 * rows, cells_w - 2 * columns
    if most_tiles is not None:
        ratio = math.sqrt(h * w / (most_tiles * tile.side**2))  # floats, as transformers has it
        if ratio > 1.1:
            return int(h // ratio), int(w // ratio)
    return h, w


def fine_box(image_hw: Size, canvas_hw: Size, tile: Tile) -> Box:
    """(y0, x0, y1, x1) of the fine grid, in fractions of the image's height and width."""
    sides = resized_hw(image_hw, canvas_hw)
    cells = canvas_cells(canvas_hw, tile)
    dropped = dropped_cells(image_hw, cells)
    (y0, y1), (x0, x1) = (
        _extent(range(out, count - out), tile) for count, out in zip(cells, dropped, strict=True)
    )
    (height, width) = sides
    top, left = ((whole - side) // 2 for whole, side in zip(canvas_hw, sides, strict=True))
    return (y0 - top) / height, (x0 - left) / width, (y1 - top) / height, (x1 - left) / width


def _extent(cells: range, tile: Tile) -> tuple[float, float]:
    """Begin and end of cells along one axis, in pixels of the canvas.

    Exact if patches fill the tile. Otherwise the cells of one tile do not touch those of the next,
    and the even grid is the closest to all of them: 27 patches of 14 pixels in tiles of 384 are off
    by up to 0.2 cells.
    """
    if tile.seen == tile.pixels:
        return cells.start * tile.patch, cells.stop * tile.patch
    centers = [n // tile.side * tile.pixels + (n % tile.side + 0.5) * tile.patch for n in cells]
    middle, mean = (len(centers) - 1) / 2, sum(centers) / len(centers)
    spread = sum((i - middle) ** 2 for i in range(len(centers)))
    step = float(tile.patch)
    if spread:
        step = sum((i - middle) * (center - mean) for i, center in enumerate(centers)) / spread
    return mean - len(centers) / 2 * step, mean + len(centers) / 2 * step


def square_rows(side: int) -> Rows:
    """The index of each cell of a tile among the image tokens."""
    return [list(range(r * side, (r + 1) * side)) for r in range(side)]


def fine_rows(grid_hw: Size, first: int) -> Rows:
    """The same for the fine view, whose first token is `first`; newline tokens are skipped."""
    h, w = grid_hw
    return [list(range(first + r * (w + 1), first + r * (w + 1) + w)) for r in range(h)]


def token_count(side: int, fine_hw: Size) -> int:
    """The number of image tokens, with newline tokens."""
    return side * side + fine_hw[0] * (fine_hw[1] + 1)
