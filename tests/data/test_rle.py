from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flmm_core.data import rle
from flmm_core.errors import DataError

masks = arrays.arrays(
    np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=17)
)


@st.composite
def several_masks(draw: st.DrawFn) -> list[np.ndarray]:
    shape = draw(arrays.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9))
    return draw(st.lists(arrays.arrays(np.bool_, shape), min_size=1, max_size=4))


def uncompressed(mask: np.ndarray) -> list[int]:
    """Runs down the columns, beginning outside."""
    runs, inside = [0], False
    for value in mask.flatten(order="F"):
        if value != inside:
            runs.append(0)
            inside = not inside
        runs[-1] += 1
    return runs


@given(masks)
def test_every_way_of_writing_an_rle_gives_the_mask_back(mask: np.ndarray) -> None:
    height, width = mask.shape
    code = rle.encode(mask)
    assert code["size"] == [height, width]
    assert isinstance(code["counts"], bytes)
    forms = [
        code,
        {**code, "counts": code["counts"].decode()},
        {**code, "counts": uncompressed(mask)},
    ]
    for form in forms:
        read = rle.to_rle(form, height, width)
        assert read == code
        assert rle.decode(read).dtype == np.bool_
        np.testing.assert_array_equal(rle.decode(read), mask)


@given(masks)
def test_area_and_box_are_those_of_the_pixels(mask: np.ndarray) -> None:
    code = rle.encode(mask)
    assert rle.area(code) == mask.sum()
    rows, columns = np.nonzero(mask)
    if len(rows) == 0:
        assert rle.bbox(code) == (0, 0, 0, 0)
    else:
        x, y = columns.min(), rows.min()
        assert rle.bbox(code) == (x, y, columns.max() - x + 1, rows.max() - y + 1)


@given(several_masks())
def test_merging_is_the_union_and_decode_all_keeps_the_order(parts: list[np.ndarray]) -> None:
    rles = [rle.encode(part) for part in parts]
    union = np.logical_or.reduce(parts)
    np.testing.assert_array_equal(rle.decode(rle.merge(rles)), union)
    stack = rle.decode_all(rles, parts[0].shape)
    np.testing.assert_array_equal(stack, np.stack(parts))


def test_no_masks_decode_to_an_empty_stack() -> None:
    assert rle.decode_all([], (4, 5)).shape == (0, 4, 5)


def test_masks_of_different_sizes_cannot_be_merged() -> None:
    small, large = (rle.encode(np.ones((n, n), bool)) for n in (2, 3))
    with pytest.raises(ValueError, match="one size can be merged, not: 2 x 2, 3 x 3"):
        rle.merge([small, large])


@settings(max_examples=300)
@given(masks, st.data())
def test_a_damaged_code_is_refused_or_still_a_mask_of_the_image(
    mask: np.ndarray, data: st.DataObject
) -> None:
    height, width = mask.shape
    code = bytearray(rle.encode(mask)["counts"])
    place = data.draw(st.integers(0, len(code) - 1))
    if data.draw(st.booleans()):
        code = code[:place]
    else:
        code[place] = data.draw(st.integers(0, 255))
    damaged = {"size": [height, width], "counts": bytes(code)}
    try:
        read = rle.to_rle(damaged, height, width)
    except DataError:
        return
    # What is accepted describes every pixel once: it survives being written again.
    decoded = rle.decode(read)
    np.testing.assert_array_equal(rle.decode(rle.encode(decoded)), decoded)
    assert decoded.sum() == rle.area(read)


def test_a_cut_code_is_refused_where_pycocotools_is_silent() -> None:
    code = rle.encode(np.eye(5, 7, dtype=bool))
    cut = {**code, "counts": code["counts"][:-1]}
    with pytest.raises(DataError) as caught:
        rle.to_rle(cut, 5, 7, source="annotation 4 in a.json")
    assert str(caught.value).splitlines()[0] == "The RLE of annotation 4 in a.json is broken."


def test_polygons_are_filled_and_united() -> None:
    first, second = [0, 0, 4, 0, 4, 3, 0, 3], [5.0, 2.0, 7.0, 2.0, 7.0, 5.0, 5.0, 5.0]
    expected = np.zeros((5, 7), dtype=bool)
    expected[0:3, 0:4] = True
    expected[2:5, 5:7] = True
    read = rle.to_rle([first, second], 5, 7)
    np.testing.assert_array_equal(rle.decode(read), expected)


def test_a_polygon_may_trace_the_border() -> None:
    around = [-0.5, 0, 7.9, 0, 7.9, 5.5, -0.5, 5.5]
    assert rle.decode(rle.to_rle([around], 5, 7)).all()


SOURCE = "annotation 17 in instances.json"
POLYGONS = (
    "COCO polygons are lists within a list, [[x0, y0, x1, y1, x2, y2], ...], of finite numbers."
)
REPAIR = "Check that the annotation belongs to this image and was made at its size."


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        (
            {"size": [10, 20], "counts": [200]},
            (
                f"The mask of {SOURCE} does not fit its image.\n"
                f"The RLE is 10 x 20, the image 12 x 20 (height x width).\n{REPAIR}"
            ),
        ),
        (
            [[0, 0, 30, 0, 30, 5]],
            (
                f"The mask of {SOURCE} does not fit its image.\n"
                "Polygon 0 spans x 0 to 30 and y 0 to 5; the image is 12 x 20 (height x width).\n"
                f"{REPAIR}"
            ),
        ),
        (
            [[0, 0, 5, 0, 5, 5], [1, 2, 3]],
            f"Polygon 1 of {SOURCE} is not a list of points.\nIt is [1, 2, 3].\n{POLYGONS}",
        ),
        (
            [[0, 0, 5, 0, 5, 5, 1]],
            (
                f"Polygon 0 of {SOURCE} is not a list of points.\n"
                f"It is [0, 0, 5, 0, 5, 5, 1].\n{POLYGONS}"
            ),
        ),
        (
            [0, 0, 5, 0, 5, 5],
            f"Polygon 0 of {SOURCE} is not a list of points.\nIt is 0.\n{POLYGONS}",
        ),
        (
            [[0, 0, 5, 0, float("nan"), 5]],
            (
                f"Polygon 0 of {SOURCE} is not a list of points.\n"
                f"It is [0, 0, 5, 0, nan, 5].\n{POLYGONS}"
            ),
        ),
        (
            {"size": [12, 20], "counts": [100, 30]},
            (
                f"The RLE of {SOURCE} is broken.\n"
                "Its counts are 130 pixels long; 12 x 20 is 240 pixels.\n"
                "The counts may be cut off; get an unchanged copy of the file."
            ),
        ),
        (
            {"size": [12, 20], "counts": [-1, 241]},
            (
                f"The RLE of {SOURCE} is broken.\n"
                "Its counts are unreadable; 12 x 20 is 240 pixels.\n"
                "The counts may be cut off; get an unchanged copy of the file."
            ),
        ),
        (
            {"size": [12, 20], "counts": "日本"},
            (
                f"The RLE of {SOURCE} is broken.\n"
                "Its counts are unreadable; 12 x 20 is 240 pixels.\n"
                "The counts may be cut off; get an unchanged copy of the file."
            ),
        ),
        (
            {"counts": "abc"},
            (
                f"The RLE of {SOURCE} is broken.\n"
                "Expected 'size' [height, width] and 'counts'; it is {'counts': 'abc'}."
            ),
        ),
        (
            7,
            f"The mask of {SOURCE} is neither a list of polygons nor an RLE.\nIt is 7.",
        ),
    ],
)
def test_what_does_not_fit_is_named(segmentation: object, message: str) -> None:
    with pytest.raises(DataError) as caught:
        rle.to_rle(segmentation, 12, 20, source=SOURCE)
    assert str(caught.value) == message
    assert caught.value.exit_code == 3
