"""The geometry of Qwen-VL's image tokens, in integers.

The processor resizes the whole image, without padding, to sides that are multiples of
`patch * merge` pixels, and the model merges `merge x merge` patches into one token. So the
single view covers the image exactly, and its shape differs from image to image.
"""

from __future__ import annotations

from collections.abc import Sequence

Rows = list[list[int]]

IMAGE_BOX = (0.0, 0.0, 1.0, 1.0)


def grid_shape(grid_thw: Sequence[int], merge_size: int) -> tuple[int, int]:
    """(h, w) in tokens of an image of (frames, h, w) patches.

    Raises:
        ValueError: More than one frame, or a side that `merge_size` does not divide.
    """
    frames, patches_h, patches_w = grid_thw
    if frames != 1:
        raise ValueError(f"an image has one frame, but image_grid_thw says {frames}")
    if patches_h % merge_size or patches_w % merge_size:
        raise ValueError(
            f"{patches_h} x {patches_w} patches do not merge {merge_size} by {merge_size}"
        )
    return patches_h // merge_size, patches_w // merge_size


def token_rows(grid_hw: tuple[int, int]) -> Rows:
    """The index of each cell among the image tokens, row by row."""
    h, w = grid_hw
    return [list(range(r * w, (r + 1) * w)) for r in range(h)]
