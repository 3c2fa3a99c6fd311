"""Files as LabelMe and X-AnyLabeling of several versions save them."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.images import read_image
from flmm_core.data.sample import AnnotatedImage
from flmm_core.errors import DataError
from tests.data.conftest import read

REFERENCE = Path(__file__).parents[2] / "fixtures" / "labelme_shapes.json"
"""Shapes and what labelme 6.3.1's `shape_to_mask` makes of them, as COCO's RLE."""


def save(folder: Path, *shapes: dict[str, Any], name: str = "a", **more: Any) -> Path:
    """A LabelMe file of 12 x 10 pixels without its image; keys of None are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    record = {"imagePath": "a.png", "imageData": None, "imageHeight": 10, "imageWidth": 12} | more
    record["shapes"] = [{"label": f"shape {n}", **shape} for n, shape in enumerate(shapes)]
    file = folder / f"{name}.json"
    file.write_text(json.dumps({key: v for key, v in record.items() if v != "left out"}))
    return file


def save_image(path: Path, size: tuple[int, int] = (12, 10)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, "teal").save(path)


def only(folder: Path) -> AnnotatedImage:
    (image,) = read(f"labelme:{folder}")
    return image


SQUARE = {"shape_type": "polygon", "points": [[1, 1], [5, 1], [5, 6], [1, 6]]}


def test_every_shape_has_labelmes_own_pixels(tmp_path: Path) -> None:
    reference = json.loads(REFERENCE.read_text())
    shapes, size = reference["shapes"], (reference["imageHeight"], reference["imageWidth"])
    save(tmp_path, *shapes, imageHeight=size[0], imageWidth=size[1])
    save_image(tmp_path / "a.png", size[::-1])
    masks = {thing.sentences[0]: thing.read_mask() for thing in only(tmp_path).objects}
    assert len(masks) == len(shapes)
    for number, shape in enumerate(shapes):
        expected = rle.decode({"size": [*size], "counts": shape["counts"].encode()})
        found = rle.decode(masks[f"shape {number}"])
        np.testing.assert_array_equal(found, expected, err_msg=str(shape))


@pytest.mark.parametrize(
    ("kind", "points", "area"),
    [
        ("rectangle", [[1, 1], [5, 6]], 30),
        ("rectangle", [[5, 6], [1, 1]], 30),
        ("rectangle", [[1, 1], [5, 1], [5, 6], [1, 6]], 30),
        ("oriented_rectangle", [[1, 1], [5, 1], [5, 6], [1, 6]], 30),
        ("rotation", [[5, 6], [1, 6], [1, 1], [5, 1]], 30),
        ("quadrilateral", [[1, 1], [5, 1], [5, 6], [1, 6]], 30),
        (None, [[1, 1], [5, 1], [5, 6], [1, 6]], 30),
    ],
)
def test_rectangles_of_every_tool(tmp_path: Path, kind: Any, points: Any, area: int) -> None:
    save(tmp_path, {"shape_type": kind, "points": points})
    save_image(tmp_path / "a.png")
    assert rle.area(only(tmp_path).objects[0].read_mask()) == area


@pytest.mark.parametrize(
    ("kind", "points", "message"),
    [
        (
            "rectangle",
            [[1, 1], [5, 1], [5, 6]],
            "Shape 0 of {file} is a rectangle of 3 points.\nExpected 2 or 4.",
        ),
        (
            "circle",
            [[1, 1], [5, 1], [5, 6]],
            "Shape 0 of {file} is a circle of 3 points.\nExpected 2.",
        ),
        (
            "circle",
            [[1, 1], [10**9, 1]],
            (
                "The circle of shape 0 of {file} does not fit its image.\n"
                "Its radius is 1e+09 pixels; the image is 10 x 12 (height x width)."
            ),
        ),
        (
            "cuboid",
            [[1, 1], [5, 1], [5, 6]],
            (
                "Shape 0 of {file} is a 'cuboid', which cannot be read.\n"
                "Shapes that can be read: polygon, rectangle, oriented_rectangle, rotation, "
                "quadrilateral, circle, mask.\nDraw it as a polygon, or remove it."
            ),
        ),
    ],
)
def test_a_shape_that_cannot_be_drawn(tmp_path: Path, kind: str, points: Any, message: str) -> None:
    file = save(tmp_path, {"shape_type": kind, "points": points})
    save_image(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        read(f"labelme:{tmp_path}")
    assert str(caught.value) == message.format(file=file)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_a_mask_of_every_mode_is_what_is_not_zero(tmp_path: Path, mode: str) -> None:
    patch = np.array([[0, 1, 0], [1, 1, 0]], dtype=bool)
    if mode == "P":  # its color may be black
        stored = Image.fromarray(patch.astype(np.uint8), "P")
        stored.putpalette([0, 0, 0] * 256)
    else:
        stored = Image.fromarray(patch).convert(mode)
    buffer = io.BytesIO()
    stored.save(buffer, "PNG")
    mask = base64.b64encode(buffer.getvalue()).decode()
    # LabelMe cuts the corners to whole pixels.
    save(tmp_path, {"shape_type": "mask", "points": [[4.0, 3.9], [6.0, 4.9]], "mask": mask})
    save_image(tmp_path / "a.png")
    expected = np.zeros((10, 12), dtype=bool)
    expected[3:5, 4:7] = patch
    np.testing.assert_array_equal(rle.decode(only(tmp_path).objects[0].read_mask()), expected)


def test_a_mask_beyond_its_image_is_not_decoded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (9_000, 9_000)).save(buffer, "PNG")
    cut = buffer.getvalue()[:2000]  # its header is whole
    mask = base64.b64encode(cut).decode()
    file = save(tmp_path, {"shape_type": "mask", "points": [[4, 3], [6, 4]], "mask": mask})
    save_image(tmp_path / "a.png")
    with pytest.raises(DataError) as caught:
        read(f"labelme:{tmp_path}")
    assert str(caught.value) == (
        f"The mask of shape 0 of {file} does not fit its image.\n"
        "It is 9000 x 9000 at row 3, column 4; the image is 10 x 12 (height x width)."
    )


@pytest.mark.parametrize("size", [None, "left out"])
def test_an_old_file_has_the_size_of_its_image(tmp_path: Path, size: Any) -> None:
    save(tmp_path, SQUARE, imageHeight=size, imageWidth=size)
    save_image(tmp_path / "a.png", (30, 20))
    assert only(tmp_path).image_hw == (20, 30)


def test_an_image_that_only_the_file_holds(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    save_image(tmp_path / "kept.png")
    data = (tmp_path / "kept.png").read_bytes()
    save(
        tmp_path / "set", SQUARE, imagePath="../gone/a.png",
        imageData=base64.b64encode(data).decode(), imageHeight=None, imageWidth=None,
    )  # fmt: skip
    image = only(tmp_path / "set")
    assert image.path.read_bytes() == data
    assert image.path.is_relative_to(tmp_path / "cache")
    assert image.image_hw == (10, 12)
    assert read_image(image.path, image_hw=image.image_hw).getpixel((0, 0)) == (0, 128, 128)
    assert only(tmp_path / "set") == image
    assert len(list((tmp_path / "cache" / "labelme").iterdir())) == 1
    # A file of the image goes before what the file holds.
    save_image(tmp_path / "gone" / "a.png")
    assert only(tmp_path / "set").path == tmp_path / "set" / "../gone/a.png"


@pytest.mark.parametrize(
    "name", ["..\\images\\a.png", "C:\\Users\\me\\a.png", "/home/me/a.png", "my%20a.png"]
)
def test_an_image_whose_path_is_anothers(tmp_path: Path, name: str) -> None:
    save(tmp_path / "set", SQUARE, imagePath=name)
    save_image(tmp_path / "set" / ("my a.png" if "%" in name else "a.png"))
    assert only(tmp_path / "set").path.parent == tmp_path / "set"


def test_the_image_of_another_file_is_not_taken(tmp_path: Path) -> None:
    """Two folders' images of one name: what lies beside the files is only one of them."""
    save(tmp_path, SQUARE, name="b", imagePath="..\\other\\a.png")
    save_image(tmp_path / "a.png")
    with pytest.raises(DataError, match="is missing"):
        read(f"labelme:{tmp_path}")
