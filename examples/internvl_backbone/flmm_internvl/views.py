"""The geometry of InternVL's image tokens, in integers.

The image is resized to `high` x `wide` tiles, whatever its sides, so a view covers it exactly.
Tiles come row by row, each with its tokens row by row; the whole image as one tile comes last, or
alone.
"""

from __future__ import annotations

Rows = list[list[int]]


def tile_rows(side: int, number: int) -> Rows:
    """The index of each cell of one tile of `side` x `side` tokens among the image tokens."""
    first = number * side * side
    return [list(range(first + r * side, first + (r + 1) * side)) for r in range(side)]


def tiled_rows(side: int, high: int, wide: int) -> Rows:
    """The same of all tiles side by side."""
    tiles = [[r // side * wide + c // side for c in range(wide * side)] for r in range(high * side)]
    return [
        [(tile * side + r % side) * side + c % side for c, tile in enumerate(row)]
        for r, row in enumerate(tiles)
    ]
