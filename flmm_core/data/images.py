"""Reads any image as upright 8-bit RGB."""

from __future__ import annotations

import io
import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from flmm_core.data.records import MAX_PIXELS
from flmm_core.errors import DataError

AGAIN = "Copy or download it again."

logger = logging.getLogger(__name__)

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that makes the image upright."""


def read_image(path: str | Path, *, image_hw: tuple[int, int] | None = None) -> Image.Image:
    """The image as RGB, rotated according to its EXIF data.

    Gray and 16-bit values are scaled to 8 bits; transparency is composited on white; CMYK is
    converted with the embedded color profile, if any; of an animation the first frame is read. An
    image of more than `MAX_PIXELS` is refused by its header, before any pixel is decoded.

    Raises:
        DataError: The file is missing, empty, truncated, too large, not an image, or not of
            the size `image_hw`.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise DataError(f"The image {path} is empty.", found="It has zero bytes.", repair=AGAIN)
        file = path.open("rb")
    except OSError as error:
        raise DataError(
            f"The image {path} cannot be read.",
            found=f"{error.strerror or error}.",
            repair="Check the path.",
        ) from error
    with file, warnings.catch_warnings():
        # Pillow warns from 89 million pixels on; ours is the limit that counts.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as stored:
                if stored.width * stored.height > MAX_PIXELS:
                    raise Image.DecompressionBombError  # as Pillow does at 179 million
                if stored.format == "EPS":
                    raise DataError(
                        f"The image {path} is an EPS program, which is not run.",
                        repair="Save it as PNG or JPEG.",
                    )
                stored.load()
                image = _upright_rgb(stored, path)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            raise DataError(
                f"The image {path} is too large.",
                found=f"It has more than {MAX_PIXELS / 1e6:g} megapixels.",
                repair="Make it smaller first.",
            ) from error
        except UnidentifiedImageError as error:
            raise DataError(
                f"The file {path} is not an image.",
                found="Its contents are of no format that Pillow can read.",
                repair="Use a JPEG, PNG, WebP, TIFF, BMP or GIF file.",
            ) from error
        except Exception as error:  # decoders raise nearly anything on broken data
            raise DataError(
                f"The image {path} is broken or cut off.",
                found=f"Decoding it ended with: {str(error) or 'nothing said'} "
                f"({type(error).__name__}).",
                repair=AGAIN,
            ) from error
    if image_hw is not None and (image.height, image.width) != tuple(image_hw):
        raise DataError(
            f"The image {path} does not have the size that its annotations were made for.",
            found=f"It is {image.height} x {image.width} (height x width, upright), the "
            f"annotations say {image_hw[0]} x {image_hw[1]}.",
            repair="Check that this is the image that was annotated, neither resized nor turned.",
        )
    return image


def _upright_rgb(image: Image.Image, path: Path) -> Image.Image:
    # `ImageOps.exif_transpose` also rewrites the EXIF data, and so fails on any damaged entry.
    turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    image = image if turn is None else image.transpose(turn)
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise DataError(
            f"The image {path} has floating-point pixels.",
            found="Which of its values is white is not recorded.",
            repair="Save it with 8 or 16 bits a channel.",
        )
    if image.mode in ("CMYK", "LAB"):
        return _through_profile(image)
    if image.has_transparency_data:
        seen = image.convert("RGBA")
        ground = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(ground, seen).convert("RGB")
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """16-bit gray -> RGB: 65535 becomes 255. Pillow's own conversion clips at 255."""
    values = np.asarray(image).astype(np.int64)
    gray = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        gray[values == transparent] = 255
    return Image.fromarray(gray).convert("RGB")


def _through_profile(image: Image.Image) -> Image.Image:
    """CMYK or LAB -> RGB, with the embedded profile if it is usable."""
    embedded = image.info.get("icc_profile")
    source: Any = None
    try:
        if image.mode == "LAB":
            source = ImageCms.createProfile("LAB")
        elif embedded:
            source = ImageCms.ImageCmsProfile(io.BytesIO(embedded))
        if source is not None:
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(image, source, target, outputMode="RGB")
            if converted is not None:
                return converted
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("a %s image's color profile cannot be used (%s)", image.mode, error)
    return image.convert("RGB")


def image_size_of(path: Path, *, upright: bool = True) -> tuple[int, int]:
    """(H, W) of an image as read by `read_image`, from its header; DataError if it has none.

    `upright` respects the EXIF orientation, for which a PNG has to be read completely.
    """
    try:
        with Image.open(path) as stored:
            width, height = stored.size
            if upright and stored.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
                return width, height
            return height, width
    except Exception:
        image = read_image(path)  # raises the error that describes the problem
        return image.height, image.width
