from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from flmm_core.data.formats.shared.polygons import fill, rectangles

sizes = st.tuples(st.integers(1, 12), st.integers(1, 12))
masks = sizes.flatmap(
    lambda size: st.binary(min_size=size[0] * size[1], max_size=size[0] * size[1]).map(
        lambda data: np.frombuffer(data, np.uint8).reshape(size) > 100
    )
)


@given(masks)
def test_rectangles_joined_are_the_mask(mask: NDArray[Any]) -> None:
    height, width = mask.shape
    parts = [fill(corners, height, width) for corners in rectangles(mask)]
    joined = np.any([*parts, np.zeros_like(mask)], axis=0)
    np.testing.assert_array_equal(joined, mask)
    assert sum(int(part.sum()) for part in parts) == mask.sum()  # none overlap


def test_a_rectangle_is_one_rectangle() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:7, 3:8] = True
    assert rectangles(mask) == [[(3, 2), (7, 2), (7, 6), (3, 6)]]


def test_the_outline_is_inside_and_the_rest_is_cut_off() -> None:
    square = fill([(1, 1), (3, 1), (3, 3), (1, 3)], 6, 6)
    assert square.sum() == 9
    assert fill([(-5, -5), (20, -5), (20, 20), (-5, 20)], 6, 6).all()
