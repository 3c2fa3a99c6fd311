"""Resampling between frames: exact, fractional, and the same as interpolate where that applies."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_core.pipeline.resample import bilinear, resample, resize_twice
from flmm_core.pipeline.types import WHOLE_IMAGE, Box

sides = st.integers(1, 12)
fractions = st.floats(0.05, 0.95)
few = settings(max_examples=40, deadline=None)


def maps(h: int, w: int) -> torch.Tensor:
    return torch.rand(2, 3, h, w, generator=torch.Generator().manual_seed(h * 100 + w))


def ramp(h: int, w: int, box: Box) -> torch.Tensor:
    """At each cell's centre 2 y - 3 x of the image, for cells of a box: (1, 1, h, w)."""
    y = box[0] + (torch.arange(h) + 0.5) / h * (box[2] - box[0])
    x = box[1] + (torch.arange(w) + 0.5) / w * (box[3] - box[1])
    return (2 * y[:, None] - 3 * x[None, :])[None, None]


def box(y: float, x: float, high: float, wide: float) -> Box:
    return (y, x, y + high, x + wide)


boxes = st.builds(box, st.floats(-0.5, 0.5), st.floats(-0.5, 0.5), fractions, fractions)


@few
@given(sides, sides, boxes)
def test_its_own_frame_changes_nothing(h: int, w: int, frame: Box) -> None:
    given_maps = maps(h, w)
    assert torch.equal(resample(given_maps, frame, frame, (h, w)), given_maps)


@few
@given(sides, sides, sides, sides)
def test_the_same_frame_is_interpolate(h: int, w: int, h2: int, w2: int) -> None:
    given_maps = maps(h, w)
    expected = F.interpolate(given_maps, (h2, w2), mode="bilinear", align_corners=False)
    found = resample(given_maps, WHOLE_IMAGE, WHOLE_IMAGE, (h2, w2))
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@few
@given(boxes, sides, sides, st.integers(4, 20), st.integers(4, 20))
def test_a_ramp_stays_a_ramp_within_the_source(
    target: Box, h2: int, w2: int, h: int, w: int
) -> None:
    """The source reaches a cell beyond the target, so no border is touched."""
    high, wide = target[2] - target[0], target[3] - target[1]
    source = (target[0] - high, target[1] - wide, target[2] + high, target[3] + wide)
    found = resample(ramp(h, w, source), source, target, (h2, w2))
    torch.testing.assert_close(found, ramp(h2, w2, target), atol=1e-5, rtol=0)


@few
@given(boxes, boxes, sides, sides)
def test_nothing_exceeds_what_was_there(source: Box, target: Box, h: int, w: int) -> None:
    given_maps = maps(h, w)
    found = resample(given_maps, source, target, (5, 6))
    low, high = given_maps.amin((2, 3)), given_maps.amax((2, 3))
    assert (found.amin((2, 3)) >= low - 1e-6).all()
    assert (found.amax((2, 3)) <= high + 1e-6).all()
    ones = resample(torch.ones(1, 1, h, w), source, target, (5, 6))
    torch.testing.assert_close(ones, torch.ones(1, 1, 5, 6))


def test_padding_around_the_image_is_cut_off() -> None:
    """A 4x4 grid whose middle two rows show the image: bands of 10 and 20, padding of 99."""
    bands = torch.tensor([99.0, 10.0, 20.0, 99.0])[:, None].expand(4, 4)[None, None]
    found = resample(bands, (-0.5, 0.0, 1.5, 1.0), WHOLE_IMAGE, (2, 4))
    expected = torch.tensor([10.0, 20.0])[:, None].expand(2, 4)[None, None]
    torch.testing.assert_close(found, expected)


def test_half_a_cell_of_padding_is_a_half() -> None:
    row = torch.tensor([0.0, 1.0, 2.0, 3.0])[None, None, None]
    found = resample(row, (0, -1 / 6, 1, 7 / 6), WHOLE_IMAGE, (1, 3))
    torch.testing.assert_close(found, torch.tensor([0.5, 1.5, 2.5])[None, None, None])


def test_outside_the_source_is_border_or_zero() -> None:
    one = torch.full((1, 1, 2, 2), 5.0)
    source = (0.25, 0.25, 0.75, 0.75)
    border = resample(one, source, WHOLE_IMAGE, (4, 4))
    zero = resample(one, source, WHOLE_IMAGE, (4, 4), outside="zero")
    torch.testing.assert_close(border, torch.full((1, 1, 4, 4), 5.0))
    expected = torch.zeros(4, 4)
    expected[1:3, 1:3] = 5.0
    torch.testing.assert_close(zero[0, 0], expected)


def test_gradients_and_dtypes_pass_through() -> None:
    given_maps = maps(3, 4).requires_grad_()
    resample(given_maps, WHOLE_IMAGE, (0.1, 0.1, 0.9, 0.9), (6, 5)).sum().backward()
    assert given_maps.grad is not None
    assert given_maps.grad.sum() == pytest.approx(2 * 3 * 6 * 5)
    assert resample(maps(3, 4).half(), WHOLE_IMAGE, WHOLE_IMAGE, (6, 5)).dtype == torch.half


def test_autocast_does_not_round() -> None:
    plain = resample(maps(3, 4), WHOLE_IMAGE, WHOLE_IMAGE, (6, 5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resample(maps(3, 4), WHOLE_IMAGE, WHOLE_IMAGE, (6, 5)), plain)


@few
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 90), st.integers(1, 90))
def test_the_gradient_of_a_resize_is_that_of_interpolate(h: int, w: int, h2: int, w2: int) -> None:
    mine, theirs = (maps(h, w).requires_grad_() for _ in range(2))
    resized = bilinear(mine, (h2, w2))
    reference = F.interpolate(theirs, (h2, w2), mode="bilinear", align_corners=False)
    assert torch.equal(resized, reference)
    weights = torch.rand(resized.shape, generator=torch.Generator().manual_seed(h2))
    (resized * weights).sum().backward()
    (reference * weights).sum().backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-4)


@few
@given(
    st.tuples(st.integers(1, 20), st.integers(1, 20)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_two_resizes_with_a_crop_or_padding_between_are_those_of_interpolate(
    cells: tuple[int, int], first: tuple[int, int], second: tuple[int, int], size: tuple[int, int]
) -> None:
    mine, theirs = (maps(*cells)[0].requires_grad_() for _ in range(2))
    found = resize_twice(mine, first, second, size)
    between = F.interpolate(theirs[:, None], first, mode="bilinear")
    between = F.pad(between, (0, second[1] - first[1], 0, second[0] - first[0]))
    expected = F.interpolate(between, size, mode="bilinear")[:, 0]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    (found.sin().sum() + expected.sin().sum()).backward()
    torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-3, atol=1e-3)


def test_positions_are_not_rounded_in_the_gradient_of_a_resize() -> None:
    exact, rounded = (maps(7, 5).requires_grad_() for _ in range(2))
    bilinear(exact, (33, 41)).sum().backward()
    with torch.autocast("cpu", torch.bfloat16):
        bilinear(rounded.bfloat16(), (33, 41)).float().sum().backward()
    torch.testing.assert_close(rounded.grad, exact.grad, rtol=1e-2, atol=0)


def test_what_inference_mode_left_behind_can_be_trained_with() -> None:
    with torch.inference_mode():
        resize_twice(maps(5, 6)[0], (11, 12), (13, 13), (7, 8))
    trained = maps(5, 6)[0].requires_grad_()
    resize_twice(trained, (11, 12), (13, 13), (7, 8)).sum().backward()
    assert trained.grad is not None
