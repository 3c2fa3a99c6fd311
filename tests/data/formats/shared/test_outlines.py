from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import given
from numpy.typing import NDArray
from pycocotools import mask as coco

from flmm_core.data.formats.shared.outlines import outlines
from tests.data.formats.shared.test_polygons import masks


@given(masks)
def test_polygons_as_coco_fills_them_are_the_mask(mask: NDArray[Any]) -> None:
    polygons = outlines(mask)
    filled = [coco.decode(coco.frPyObjects([polygon], *mask.shape))[..., 0] for polygon in polygons]
    covered = np.sum([*filled, np.zeros_like(mask)], axis=0)
    np.testing.assert_array_equal(covered, mask)  # none overlap, so 1 is the most


def test_a_disk_is_one_polygon_and_a_ring_is_four() -> None:
    rows, columns = np.ogrid[:20, :20]
    distance = np.hypot(rows - 9.5, columns - 9.5)
    assert len(outlines(distance < 8)) == 1
    assert len(outlines((distance < 8) & (distance > 4))) == 4
    assert outlines(np.ones((2, 3), dtype=bool)) == [[3, 0, 3, 2, 0, 2, 0, 0]]
