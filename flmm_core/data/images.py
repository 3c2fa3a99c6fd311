"""Reads any image a user may have as 8-bit RGB, upright, or says why it cannot."""

from __future__ import annotations

import io
import logging
import re
import warnings
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from flmm_core.data.formats.shared.fields import MAX_PIXELS
from flmm_core.errors import DataError

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
"""EXIF's orientation -> what makes the image upright."""


def read_image(
    path: str | Path,
    *,
    max_pixels: int = MAX_PIXELS,
    image_hw: tuple[int, int] | None = None,
) -> Image.Image:
    """The image as RGB, turned as its EXIF data say.

    Grey and 16-bit values are scaled to 8 bits; transparency is shown on white; CMYK goes through
    the embedded colour profile if there is one; of an animation the first frame is taken.

    Args:
        path: The file.
        max_pixels: Larger images are refused by their header, before any pixel is decoded.
        image_hw: Height and width that the image must have, if they are known.

    Raises:
        DataError: The file is missing, empty, truncated, too large, no image, or not of the
            size that was asked for.
    """
    path = Path(path)
    try:
        if path.stat().st_size == 0:
            raise DataError(
                f"The image {path} is empty.",
                found="The file has zero bytes.",
                repair="Copy or download it again.",
            )
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
                _check_size(stored.width * stored.height, max_pixels, path)
                if stored.format == "EPS":
                    raise DataError(
                        f"The image {path} is an EPS program, which is not run.",
                        repair="Save it as PNG or JPEG.",
                    )
                stored.load()
                picture = _rgb(_upright(stored), path)
        except DataError:
            raise
        except Image.DecompressionBombError as error:
            # Pillow's own limit lies before ours when it is asked for more than about 179 million.
            number = re.search(r"\((\d+) pixels\)", str(error))
            _check_size(int(number[1]) if number else max_pixels + 1, max_pixels, path)
            raise DataError(
                f"The image {path} is too large for Pillow.", found=f"{error}"
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
                repair="Copy or download it again.",
            ) from error
    if image_hw is not None and (picture.height, picture.width) != tuple(image_hw):
        raise DataError(
            f"The image {path} does not have the size that its annotations were made for.",
            found=f"It is {picture.height} x {picture.width} (height x width, upright), the "
            f"annotations say {image_hw[0]} x {image_hw[1]}.",
            repair="Check that this is the image that was annotated, neither resized nor turned.",
        )
    return picture


def _check_size(pixels: int, max_pixels: int, path: Path) -> None:
    if pixels > max_pixels:
        raise DataError(
            f"The image {path} is too large.",
            found=f"It has {pixels / 1e6:.1f} megapixels; the limit is {max_pixels / 1e6:.1f}.",
            repair="Make it smaller first.",
        )


def _upright(picture: Image.Image) -> Image.Image:
    """Turned as EXIF's orientation says.

    Not by `ImageOps.exif_transpose`: that also writes the EXIF data anew, and so fails on any
    other damaged entry.
    """
    turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if turn is None else picture.transpose(turn)


def _rgb(picture: Image.Image, path: Path) -> Image.Image:
    """Any of Pillow's modes -> RGB."""
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        return _from_16_bits(picture)
    if picture.mode == "F":
        raise DataError(
            f"The image {path} has floating-point pixels.",
            found="Which of its values is white is not recorded.",
            repair="Save it with 8 or 16 bits a channel.",
        )
    if picture.mode in ("CMYK", "LAB"):
        return _through_profile(picture)
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        ground = Image.new("RGBA", seen.size, "white")
        return Image.alpha_composite(ground, seen).convert("RGB")
    return picture.convert("RGB")


def _from_16_bits(picture: Image.Image) -> Image.Image:
    """16-bit grey -> RGB: 65535 becomes 255. Pillow's own conversion clips at 255."""
    values = np.asarray(picture).astype(np.int64)
    grey = np.clip((values + 128) // 257, 0, 255).astype(np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey).convert("RGB")


def _through_profile(picture: Image.Image) -> Image.Image:
    """CMYK or LAB -> RGB, by the embedded profile where there is a usable one."""
    embedded = picture.info.get("icc_profile")
    try:
        source = (
            ImageCms.createProfile("LAB")
            if picture.mode == "LAB"
            else ImageCms.ImageCmsProfile(io.BytesIO(embedded))
            if embedded
            else None
        )
        if source is not None:
            target = ImageCms.createProfile("sRGB")
            converted = ImageCms.profileToProfile(picture, source, target, outputMode="RGB")
            if converted is not None:
                return converted
    except (ImageCms.PyCMSError, OSError) as error:
        logger.warning("a %s image's colour profile cannot be used (%s)", picture.mode, error)
    return picture.convert("RGB")


def image_size_of(path: Path, *, upright: bool = True) -> tuple[int, int]:
    """(height, width) of an image as `read_image` gives it, from its header alone.

    Args:
        path: The file.
        upright: Look for an EXIF orientation; for a PNG that takes reading it whole.

    Raises:
        DataError: The file is missing or no image.
    """
    try:
        with Image.open(path) as stored:
            width, height = stored.size
            if upright and stored.getexif().get(ExifTags.Base.Orientation, 1) in (5, 6, 7, 8):
                return width, height
            return height, width
    except Exception:
        # Its own words for what is wrong; whatever it can read has a size.
        picture = read_image(path)
        return picture.height, picture.width
