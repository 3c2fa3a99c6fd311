"""Bounding boxes of masks."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_core.pipeline.boxes import tight_boxes


def test_boxes_end_after_the_last_pixel() -> None:
    masks = torch.zeros(3, 5, 7, dtype=torch.bool)
    masks[0, 4, 6] = True
    masks[1, 1:3, 2] = True
    masks[1, 0, 5] = True
    boxes = tight_boxes(masks)
    assert boxes.tolist() == [[6, 4, 7, 5], [2, 0, 6, 3], [0, 0, 0, 0]]
    assert boxes.dtype == torch.int64
    assert tight_boxes(masks[:0]).shape == (0, 4)


@settings(deadline=None, max_examples=50)
@given(h=st.integers(1, 12), w=st.integers(1, 12), seed=st.integers(0, 10**6))
def test_a_box_holds_its_mask_and_each_side_touches_it(h: int, w: int, seed: int) -> None:
    masks = torch.rand(4, h, w, generator=torch.Generator().manual_seed(seed)) > 0.9
    for mask, (x0, y0, x1, y1) in zip(masks, tight_boxes(masks).tolist(), strict=True):
        inside = mask[y0:y1, x0:x1]
        assert inside.sum() == mask.sum()
        if mask.any():
            sides = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
            assert all(side.any() for side in sides)
