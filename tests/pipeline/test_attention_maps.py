"""Traces into maps: the order of channels, cells and views, and what each map sums to."""

from __future__ import annotations

import torch

from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_IMAGE, ImageView, Trace

L, N, P = 3, 2, 4
PADDED = (-0.25, 0.0, 1.25, 1.0)


def view(name: str, h: int, w: int, box: tuple[float, float, float, float]) -> ImageView:
    return ImageView(name, torch.arange(h * w).view(h, w), box)


def trace(*views: ImageView) -> Trace:
    cells = sum(v.token_index.numel() for v in views)
    generator = torch.Generator().manual_seed(0)
    return Trace(
        attention=torch.rand(L, N, P, cells, generator=generator) * 0.01,
        hidden=torch.zeros(L, P, 8),
        row_phrase=torch.arange(P),
        views=views,
        image_hw=(30, 40),
    )


def test_one_view_is_laid_out_row_by_row_layer_by_layer() -> None:
    given = trace(view("image", 2, 5, PADDED))
    found = attention_maps(given)
    assert found.image_box == PADDED
    assert found.maps.shape == (P, L * N, 2, 5)
    for p in range(P):
        for layer in range(L):
            for head in range(N):
                row = given.attention[layer, head, p]
                expected = (row / row.sum()).view(2, 5)
                torch.testing.assert_close(found.maps[p, layer * N + head], expected)


def test_every_map_sums_to_one_over_its_own_view() -> None:
    coarse, fine = view("coarse", 3, 3, WHOLE_IMAGE), view("fine", 4, 6, WHOLE_IMAGE)
    maps = attention_maps(trace(coarse, fine)).maps
    assert maps.shape == (P, 2 * L * N, 4, 6)
    torch.testing.assert_close(maps[:, L * N :].sum((2, 3)), torch.ones(P, L * N))
    alone = attention_maps(trace(coarse)).maps
    torch.testing.assert_close(alone.sum((2, 3)), torch.ones(P, L * N))


def test_other_views_come_into_the_frame_of_the_one_with_most_cells() -> None:
    coarse, fine = view("coarse", 3, 3, WHOLE_IMAGE), view("fine", 4, 6, PADDED)
    given = trace(coarse, fine)
    found = attention_maps(given)
    assert found.image_box == PADDED
    part = given.attention[..., :9]
    each = (part / part.sum(-1, keepdim=True)).flatten(0, 1).transpose(0, 1).unflatten(2, (3, 3))
    expected = resample(each, WHOLE_IMAGE, PADDED, (4, 6))
    torch.testing.assert_close(found.maps[:, : L * N], expected)

    # the channels stay in the order of the views, whichever frame is taken
    turned = attention_maps(trace(fine, coarse))
    assert turned.image_box == PADDED
    torch.testing.assert_close(turned.maps[:, : L * N].sum((2, 3)), torch.ones(P, L * N))


def test_a_map_of_nothing_is_zero_and_not_nan() -> None:
    given = trace(view("image", 2, 2, WHOLE_IMAGE))
    given.attention[1, 1, 2] = 0
    maps = attention_maps(given).maps
    assert torch.isfinite(maps).all()
    assert (maps[2, 1 * N + 1] == 0).all()
