"""Coarse logits must lie where the image lies, whatever the grid and the companions."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from flmm_core.pipeline.mask_head import MaskHead, paper_crop
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Box
from tests.heads import REFERENCE

CUTS = json.loads((REFERENCE / "unpad.json").read_text())


def random_maps(p: int, h: int, w: int, box: Box = WHOLE_IMAGE, seed: int = 0) -> AttentionMaps:
    maps = torch.rand(p, 8, h, w, generator=torch.Generator().manual_seed(seed))
    return AttentionMaps(maps / maps.sum(dim=(2, 3), keepdim=True), box)


@pytest.fixture
def head() -> MaskHead:
    torch.manual_seed(0)
    head = MaskHead(8, 4)
    torch.nn.init.normal_(head.unet.conv_seg.weight)
    return head


def see_through(monkeypatch: pytest.MonkeyPatch, head: MaskHead) -> None:
    """Let the U-Net give back its first channel, so that places can be followed."""
    monkeypatch.setattr(head.unet, "forward", lambda maps: maps[:, :1])


def ramps(h: int, w: int, box: Box) -> AttentionMaps:
    """Two phrases whose map is the height and the width in the image at each cell's centre."""
    y = box[0] + (torch.arange(h) + 0.5) / h * (box[2] - box[0])
    x = box[1] + (torch.arange(w) + 0.5) / w * (box[3] - box[1])
    maps = torch.stack([y[:, None].expand(h, w), x[None, :].expand(h, w)])  # (2, h, w)
    return AttentionMaps(maps[:, None].expand(2, 8, h, w), box)


@pytest.mark.parametrize(
    ("grid", "box"),
    [
        ((24, 24), WHOLE_IMAGE),
        ((17, 31), WHOLE_IMAGE),
        ((49, 20), WHOLE_IMAGE),
        ((80, 24), WHOLE_IMAGE),
        ((24, 24), (-64 / 255, 0.0, 319 / 255, 1.0)),
        ((24, 24), (0.0, -2.0, 1.0, 3.0)),
        ((28, 48), (0.013, -0.02, 0.991, 1.02)),
    ],
)
def test_logits_lie_where_the_image_lies(
    head: MaskHead, monkeypatch: pytest.MonkeyPatch, grid: tuple[int, int], box: Box
) -> None:
    see_through(monkeypatch, head)
    (logits,) = head([ramps(*grid, box)])
    _, h, w = logits.shape
    y, x = (torch.arange(h) + 0.5) / h, (torch.arange(w) + 0.5) / w
    # bilinear enlarging is flat beyond the outermost cells' centres
    inner_y, inner_x = (slice(side // 8, -(side // 8) or None) for side in (h, w))
    assert (logits[0, inner_y] - y[inner_y, None]).abs().max() < 1e-4
    assert (logits[1, :, inner_x] - x[None, inner_x]).abs().max() < 1e-4


def test_the_cells_are_about_square_on_the_padded_grid(head: MaskHead) -> None:
    (logits,) = head([random_maps(1, 24, 24, (-64 / 255, 0.0, 319 / 255, 1.0))])
    assert logits.shape == (1, 43, 64)  # 255 of 384 pixels of 64 cells: 42.5


@pytest.mark.parametrize(("paper_rounding", "cells"), [(True, 63), (False, 64)])
def test_a_side_of_49_loses_a_cell_only_in_the_original(paper_rounding: bool, cells: int) -> None:
    (logits,) = MaskHead(8, 4, paper_rounding=paper_rounding)([random_maps(1, 49, 49)])
    assert logits.shape == (1, cells, cells)


@pytest.mark.parametrize("case", CUTS, ids=lambda c: f"{c['processor']}-{c['image_wh']}")
def test_the_papers_cut_is_the_originals(case: dict[str, Any]) -> None:
    crop, box = paper_crop(fraction_box(case["meta_data"]), tuple(case["grid_hw"])), case["crop"]
    top, left, h, w = crop
    assert (top, left, top + h, left + w) == (box["y0"], box["x0"], box["y1"], box["x1"])


def fraction_box(meta: dict[str, Any]) -> Box:
    """Where the padded square lies in the image, in fractions of the image."""
    padding, shape = meta["padding"], meta["image_shape"]
    top, left = padding["before_height"], padding["before_width"]
    h, w = shape["height"], shape["width"]
    return (
        -top / h,
        -left / w,
        (h + padding["after_height"]) / h,
        (w + padding["after_width"]) / w,
    )


@pytest.mark.parametrize(
    "box", [(0.1, 0.2, 0.9, 0.8), (-3.0, 0.0, -1.0, 1.0), (0.0, 0.0, 9.0, 1.0)]
)
def test_the_papers_cut_stays_in_the_grid(box: Box) -> None:
    top, left, h, w = paper_crop(box, (10, 12))
    assert 0 <= top < top + h <= 10
    assert 0 <= left < left + w <= 12


@pytest.mark.parametrize("paper_rounding", [True, False])
def test_companions_change_nothing(head: MaskHead, paper_rounding: bool) -> None:
    head.paper_rounding = paper_rounding
    batch = [
        random_maps(2, 12, 12, seed=1),
        random_maps(1, 7, 35, seed=2),  # 5:1
        random_maps(3, 12, 12, (-0.5, 0.0, 1.5, 1.0), seed=3),
        random_maps(0, 12, 12, seed=4),
        random_maps(1, 1, 1, seed=5),
    ]
    with torch.no_grad():
        together = head(batch)
        alone = [head([sample])[0] for sample in batch]
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.shape == theirs.shape
        assert ours.isfinite().all()
        assert not ours.numel() or (ours - theirs).abs().max() <= 1e-4


def test_many_masks_pass_in_portions_without_a_difference(
    head: MaskHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    maps = random_maps(5, 9, 9)
    with torch.no_grad():
        (whole,) = head([maps])
        monkeypatch.setattr("flmm_core.pipeline.mask_head.CHUNK", 2)
        seen: list[int] = []
        forward = head.unet.forward
        monkeypatch.setattr(head.unet, "forward", lambda x: (seen.append(len(x)), forward(x))[1])
        (portions,) = head([maps])
    assert seen == [2, 2, 1]
    assert (whole - portions).abs().max() <= 1e-5


@pytest.mark.parametrize("paper_rounding", [True, False])
def test_a_batch_without_phrases_can_be_back_propagated(
    head: MaskHead, paper_rounding: bool
) -> None:
    head.paper_rounding = paper_rounding
    (logits,) = head([random_maps(0, 12, 12)])
    assert logits.shape == (0, 64, 64)
    logits.sum().backward()
    grads = [value.grad for value in head.parameters()]
    assert all(grad is not None and not grad.any() for grad in grads)


def test_logits_are_float32_under_autocast(head: MaskHead) -> None:
    with torch.autocast("cpu", torch.bfloat16):
        (logits,) = head([random_maps(1, 12, 12, (-0.5, 0.0, 1.5, 1.0))])
    assert logits.dtype is torch.float32
