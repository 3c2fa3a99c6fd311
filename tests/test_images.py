"""`to_image`: a file, a PIL image and an array become the same upright RGB."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from flmm_core.errors import DataError, UsageError
from flmm_core.images import to_image

NOISE = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)


def saved(path: Path, orientation: int) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(NOISE).save(path, exif=exif)
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp"])
def test_a_pil_image_is_turned_as_pillow_turns_it(
    tmp_path: Path, orientation: int, suffix: str
) -> None:
    path = saved(tmp_path / f"a.{suffix}", orientation)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
    loaded = Image.open(path)
    copied = Image.open(path).convert("RGB")  # keeps the EXIF data
    turned = ImageOps.exif_transpose(Image.open(path))
    for given in (path, os.fspath(path), loaded, copied, turned, wanted):
        assert np.array_equal(np.asarray(to_image(given)), wanted)
    if suffix != "tif":  # which Pillow turns when it loads the file
        assert loaded.getexif().get(0x0112, 1) == orientation  # left as it was


def test_an_image_is_turned_once(tmp_path: Path) -> None:
    for suffix in ("png", "jpg", "tif", "webp"):
        image = to_image(saved(tmp_path / f"a.{suffix}", 6))
        assert image.size == to_image(image).size == (24, 40)
        assert to_image(image.resize((12, 20))).size == (12, 20)


def test_upright_rgb_is_not_copied(tmp_path: Path) -> None:
    image = Image.effect_noise((7, 5), 80).convert("RGB")
    assert to_image(image) is image
    image.getexif()[274] = 6
    assert to_image(image).size == (5, 7)
    clear = Image.new("RGB", (7, 5))
    clear.info["transparency"] = (0, 0, 0)
    assert to_image(clear).getpixel((0, 0)) == (255, 255, 255)


def test_arrays_and_tensors() -> None:
    gray, alpha = NOISE[:, :, 0], np.dstack([NOISE, np.full((24, 40), 255, np.uint8)])
    for given in (NOISE, NOISE.copy(order="F"), torch.from_numpy(NOISE), alpha):
        assert np.array_equal(np.asarray(to_image(given)), NOISE)
    for given in (gray, gray[:, :, None]):
        assert np.array_equal(np.asarray(to_image(given)), np.dstack([gray] * 3))
    assert to_image(np.zeros((2, 2, 4), np.uint8)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    "given",
    [NOISE / 255, NOISE.astype(np.int64), NOISE.transpose(2, 0, 1), NOISE[None], np.uint8(3)],
    ids=lambda given: f"{given.shape} {given.dtype}",
)
def test_an_array_that_is_no_image_is_refused(given: Any) -> None:
    with pytest.raises(UsageError) as error:
        to_image(given)
    assert str(error.value) == (
        "The array is not an image.\n"
        f"Its shape is {given.shape} of {given.dtype}; expected (height, width, 3) RGB of uint8, "
        "0 to 255.\n"
        "Move the channels to the end, and scale values to 0..255."
    )


def test_a_tensor_without_values_is_refused() -> None:
    with pytest.raises(UsageError, match="The Tensor is no array on the CPU"):
        to_image(torch.empty(2, 2, 3, dtype=torch.uint8, device="meta"))


def test_an_array_without_pixels_is_refused() -> None:
    with pytest.raises(DataError, match="The image has no pixels"):
        to_image(NOISE[:0])


def test_a_broken_pil_image_is_an_error_that_names_its_file(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", 1)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(DataError, match=f"The image {path} is broken or cut off"):
        to_image(Image.open(path))
    with pytest.raises(DataError, match=r"The image a\0b cannot be read"):
        to_image("a\0b")
