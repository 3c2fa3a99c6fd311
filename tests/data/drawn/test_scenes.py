from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_core.data.drawn.flat_painter import make_flat_scene, paint_flat
from flmm_core.data.drawn.scenes import (
    COLORS,
    HARD_KINDS,
    IMAGE_SIDES,
    SHAPES,
    Scene,
    Shape,
    expressions,
    make_scene,
    paint,
)

KINDS = ("plain", *HARD_KINDS)
WORDS = re.compile(
    r"(?:the )?(?P<adjective>small|large|left|right|upper|lower)? ?"
    rf"(?P<color>{'|'.join(COLORS)}) (?P<name>{'|'.join(SHAPES)})"
    rf"(?: (?P<relation>left of|right of|above|below) the "
    rf"(?P<mark_color>{'|'.join(COLORS)}) (?P<mark>{'|'.join(SHAPES)}))?"
)


def meant(scene: Scene, words: str) -> list[Shape]:
    """Which shapes an expression names, by a reading of our own."""
    match = WORDS.fullmatch(words)
    assert match, words
    found = [s for s in scene.shapes if (s.color, s.name) == (match["color"], match["name"])]
    if match["adjective"] in ("small", "large"):
        found = [s for s in found if s.size == match["adjective"]]
    elif match["adjective"]:
        key = {
            "left": lambda s: s.x,
            "right": lambda s: -s.x,
            "upper": lambda s: s.y,
            "lower": lambda s: -s.y,
        }[match["adjective"]]
        found = [min(found, key=key)]
    if match["relation"]:
        kind = (match["mark_color"], match["mark"])
        (mark,) = [s for s in scene.shapes if (s.color, s.name) == kind]
        holds = {
            "left of": lambda s: s.x < mark.x,
            "right of": lambda s: s.x > mark.x,
            "above": lambda s: s.y < mark.y,
            "below": lambda s: s.y > mark.y,
        }[match["relation"]]
        found = [s for s in found if holds(s)]
    return found


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
@settings(max_examples=200, deadline=None)
def test_every_expression_names_its_shape_and_no_other(seed: int, kind: str) -> None:
    scene = make_scene(seed, kind)
    for shape in scene.shapes:
        for words in expressions(scene, shape, np.random.default_rng(seed)):
            assert meant(scene, words) == [shape], words


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_scene_and_another_another(kind: str) -> None:
    first, again, other = make_scene(4, kind), make_scene(4, kind), make_scene(5, kind)
    assert first == again
    assert first != other
    for one, two in zip(paint(first), paint(again), strict=True):
        assert np.array_equal(one, two)


@given(seed=st.integers(0, 2**32), kind=st.sampled_from(KINDS))
@settings(max_examples=40, deadline=None)
def test_masks_are_where_the_shapes_are_painted(seed: int, kind: str) -> None:
    scene = make_scene(seed, kind)
    pixels, masks, whole = paint(scene)
    assert pixels.shape == (scene.height, scene.width, 3)
    assert masks.sum(0).max() <= 1  # what lies in front hides what lies behind
    assert (masks.sum((1, 2)) <= whole).all()
    for shape, mask in zip(scene.shapes, masks, strict=True):
        if mask.sum() < 30:
            continue
        # The mean color under the mask is nearest to the shape's own among all colors.
        mean = pixels[mask].mean(0)
        mean = mean / mean.max()
        apart = {
            name: np.abs(mean - np.array(rgb) / max(rgb)).sum() for name, rgb in COLORS.items()
        }
        assert min(apart, key=apart.get) == shape.color


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("painter", ["sdf", "flat"])
def test_each_shape_covers_a_plausible_part_of_its_circle(name: str, painter: str) -> None:
    shape = Shape(name, "red", "large", 64, 64, 40, 0.2, (200, 30, 30))
    scene = Scene(128, 128, (shape,), "flat", "plain", 1)
    _, masks, whole = paint(scene) if painter == "sdf" else paint_flat(scene)
    share = masks[0].sum() / (np.pi * 40**2)
    assert whole[0] == masks[0].sum()
    bounds = {
        "circle": (0.98, 1.03),
        "square": (0.7, 0.8),
        "triangle": (0.38, 0.45),
        "star": (0.35, 0.45),
        "ring": (0.65, 0.8),
        "cross": (0.55, 0.65),
    }[name]
    assert bounds[0] < share < bounds[1]
    assert masks[0, 64, 64] == (name != "ring")


def test_slices_hold_what_their_names_say() -> None:
    for seed in range(40):
        relation = make_scene(seed, "relation")
        assert (
            len({s.kind for s in relation.shapes}) < len(relation.shapes)
            or len(relation.shapes) < 3
        )
        first, second = make_scene(seed, "size").shapes[:2]
        assert first.kind == second.kind
        assert (first.size, second.size) == ("small", "large")
        assert all(s.radius < 0.081 * max(IMAGE_SIDES) for s in make_scene(seed, "small").shapes)
        assert all(s.textured for s in make_scene(seed, "texture").shapes)
        plain = make_scene(seed, "plain")
        assert len({s.kind for s in plain.shapes}) == len(plain.shapes)
    hidden = [paint(make_scene(seed, "occlusion"))[1:] for seed in range(40)]
    assert sum((masks.sum((1, 2)) < whole).any() for masks, whole in hidden) > 30


def test_the_other_painter_uses_flat_colors_and_other_sizes() -> None:
    scene = make_flat_scene((3,))
    pixels, masks, _ = paint_flat(scene)
    assert scene.height >= 160
    for mask in masks:
        assert len(np.unique(pixels[mask], axis=0)) == 1
