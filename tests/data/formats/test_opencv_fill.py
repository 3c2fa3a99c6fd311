"""Polygons against OpenCV itself, of the version that ReasonSeg's publishers used (4.8 to 4.10)."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.formats.shared.opencv_fill import Point, fill_poly
from tests.data.conftest import read


def painted(points: list[Point], height: int, width: int, *, outline: bool) -> np.ndarray:
    canvas = np.zeros((height, width), dtype=np.uint8)
    polygon = np.array([points], dtype=np.int32)
    if outline:
        cv2.polylines(canvas, polygon, True, 1, 1)
    cv2.fillPoly(canvas, polygon, 1)
    return canvas.astype(bool)


SIDES = st.integers(1, 60)
COORDINATES = st.integers(-20, 80) | st.integers(-1000, 1000)
POLYGONS = st.lists(st.tuples(COORDINATES, COORDINATES), min_size=1, max_size=9)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(POLYGONS, SIDES, SIDES)
@example([(5, 5), (40, 12), (20, 37)], 50, 50)
@example([(0, 0), (59, 0), (0, 59), (59, 59)], 60, 60)
def test_every_pixel_is_opencvs(points: list[Point], height: int, width: int) -> None:
    mask = fill_poly(points, height, width)
    for outline in (False, True):
        np.testing.assert_array_equal(mask, painted(points, height, width, outline=outline))


@pytest.mark.parametrize("seed", range(3))
def test_large_star_polygons_are_opencvs(seed: int) -> None:
    generator = np.random.default_rng(seed)
    height, width = 480, 640
    turns = np.sort(generator.uniform(0, 2 * np.pi, 60))
    radii = generator.uniform(20, 400, 60)  # some leave the image
    points = [
        (int(320 + radius * np.cos(turn)), int(240 + radius * np.sin(turn)))
        for turn, radius in zip(turns, radii, strict=True)
    ]
    expected = painted(points, height, width, outline=True)
    np.testing.assert_array_equal(fill_poly(points, height, width), expected)


@pytest.mark.parametrize("far", [10**6, 10**12, 10**300])
def test_points_far_beyond_the_image_cost_nothing(far: int) -> None:
    assert fill_poly([(-far, -far), (far, -far), (far, far), (-far, far)], 4, 5).all()
    assert not fill_poly([(far, 0), (far, far), (far + 9, 3)], 4, 5).any()


def test_reasonseg_is_painted_as_its_publishers_paint_it(tmp_path: Path) -> None:
    """Slanted, crossing and equal polygons of both labels, in the publishers' own order."""
    generator = np.random.default_rng(5)
    height, width = 60, 80
    equal = [[10.9, 10.2], [30.1, 10.7], [30.4, 30.9], [10.5, 30.5]]
    shapes = [
        {"label": "ignore", "points": equal},
        {"label": "target", "points": [[x + 9, y] for x, y in equal]},
        {"label": "target", "points": equal},
    ]
    for number in range(7):
        points = generator.uniform((0, 0), (width, height), (generator.integers(3, 9), 2))
        label = "ignore region" if number % 3 == 0 else "target"
        shapes.append({"label": label, "points": points.round(2).tolist()})
    folder = tmp_path / "ReasonSeg" / "val"
    folder.mkdir(parents=True)
    Image.new("RGB", (width, height)).save(folder / "1.jpg")
    record = {"text": ["a"], "is_sentence": True, "shapes": shapes}
    (folder / "1.json").write_text(json.dumps(record))

    whole = [[(int(x), int(y)) for x, y in shape["points"]] for shape in shapes]
    areas = [painted(points, height, width, outline=True).sum() for points in whole]
    assert areas[0] == areas[1] == areas[2]
    canvas = np.zeros((height, width), dtype=np.uint8)
    for index in np.argsort(areas, kind="stable")[::-1]:
        value = 255 if "ignore" in shapes[index]["label"] else 1
        cv2.polylines(canvas, np.array([whole[index]], np.int32), True, value, 1)
        cv2.fillPoly(canvas, np.array([whole[index]], np.int32), value)

    (thing,) = read(f"reasonseg:{tmp_path}@val")[0].objects
    assert thing.ignore is not None
    np.testing.assert_array_equal(rle.decode(thing.read_mask()), canvas == 1)
    np.testing.assert_array_equal(rle.decode(thing.ignore), canvas == 255)
