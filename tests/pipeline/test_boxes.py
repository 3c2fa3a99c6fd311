"""Boxes of enlarged maps are those that enlarging them gives."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from flmm_core.pipeline.boxes import enlarged_boxes, tight_boxes

sides = st.integers(1, 12)
pixels = st.integers(1, 70)


@settings(deadline=None, max_examples=200)
@given(h=sides, w=sides, height=pixels, width=pixels, seed=st.integers(0, 10**6))
def test_as_if_the_map_were_enlarged(h: int, w: int, height: int, width: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # few cells above the threshold, and some none: peaks between the pixels that are looked at
    maps = (
        torch.rand(5, h, w, generator=generator) ** torch.tensor([1, 3, 9, 30, 90])[:, None, None]
    )
    large = F.interpolate(maps[:, None].double(), (height, width), mode="bilinear")[:, 0]
    threshold = 0.4
    near = (large - threshold).abs().amin(dim=(1, 2)) < 1e-5  # rounding decides
    found = enlarged_boxes(maps, (height, width), threshold)
    assert found.dtype == torch.int64
    assert torch.equal(found[~near], tight_boxes(large > threshold)[~near])


def test_none() -> None:
    assert enlarged_boxes(torch.zeros(0, 3, 4), (30, 40), 0.5).shape == (0, 4)
    assert enlarged_boxes(torch.zeros(2, 3, 4), (30, 40), 0.5).tolist() == [[0] * 4] * 2
