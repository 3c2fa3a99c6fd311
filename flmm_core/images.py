"""Reads any image as upright 8-bit RGB: a file, an array or a PIL image."""

from __future__ import annotations

import io
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from flmm_core.errors import DataError, UsageError

MAX_PIXELS = 100_000_000
"""The largest image that is read."""
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
_SAY_ORIENTATION = ("exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif")


def to_image(source: object, *, upright: bool = True) -> Image.Image:
    """An image as upright RGB, whatever it is given as.

    Gray and 16-bit values are scaled to 8 bits; transparency is composited on white; CMYK is
    converted with the embedded color profile, if any; of an animation the first frame is read. A
    file or PIL image is turned as its EXIF orientation says; the result has none, so it is not
    turned again. An image of more than `MAX_PIXELS` is refused before any pixel is decoded.

    Args:
        source: A path; a PIL image, which is left as it is, and returned if it is upright RGB
            already; or an array or tensor of uint8, (H, W, 3) RGB, (H, W, 4) RGBA or (H, W) gray,
            upright.
        upright: False leaves a file or PIL image as it is stored, whatever its EXIF data say.

    Raises:
        DataError: The file or image is missing, empty, truncated, too large or not an image.
        UsageError: It is nothing of the above.
    """
    if isinstance(source, str | os.PathLike):
        return _read_file(Path(source), upright)
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "")) or "given"
        if type(source) is Image.Image and source.mode == "RGB" and _is_done(source):
            return source  # the copy of a photo takes much memory
        with _decoding(f"The image {name}"):
            return _to_rgb(source, f"The image {name}", upright)
    if hasattr(source, "__array__"):
        return _from_array(source)
    raise UsageError(
        "There is no image to ground in.",
        found=f"Found {type(source).__name__}; expected a PIL image, a path or an array.",
        repair="Give one image, for example the path of a file.",
    )


def _read_file(path: Path, upright: bool) -> Image.Image:
    try:
        if path.stat().st_size == 0:
            raise DataError(f"The image {path} is empty.", found="It has zero bytes.", repair=AGAIN)
        file = path.open("rb")
    except (OSError, ValueError) as error:
        found = error.strerror if isinstance(error, OSError) else None
        raise DataError(
            f"The image {path} cannot be read.",
            found=f"{found or error}.",
            repair="Check the path.",
        ) from error
    with file, _decoding(f"The image {path}", f"The file {path}"), Image.open(file) as stored:
        return _to_rgb(stored, f"The image {path}", upright)


@contextmanager
def _decoding(image: str, file: str = "") -> Iterator[None]:
    """Turns what a decoder raises into a DataError; `image` and `file` name it in messages."""
    with warnings.catch_warnings():
        # Pillow warns from 89 million pixels on; ours is the limit that counts.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            yield
        except (DataError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise DataError(
                f"{image} is too large.",
                found=f"It has more than {MAX_PIXELS / 1e6:g} megapixels.",
                repair="Make it smaller first.",
            ) from error
        except UnidentifiedImageError as error:
            raise DataError(
                f"{file or image} is not an image.",
                found="Its contents are of no format that Pillow can read.",
                repair="Use a JPEG, PNG, WebP, TIFF, BMP or GIF file.",
            ) from error
        except Exception as error:  # decoders raise nearly anything on broken data
            raise DataError(
                f"{image} is broken or cut off.",
                found=f"Decoding it ended with: {str(error) or 'nothing said'} "
                f"({type(error).__name__}).",
                repair=AGAIN,
            ) from error


def _to_rgb(stored: Image.Image, name: str, upright: bool = True) -> Image.Image:
    if stored.width * stored.height > MAX_PIXELS:
        raise Image.DecompressionBombError  # as Pillow does at 179 million
    if stored.format == "EPS":
        raise DataError(
            f"{name} is an EPS program, which is not run.",
            repair="Save it as PNG or JPEG.",
        )
    stored.load()
    image = _as_rgb(_turned(stored) if upright else stored, name)
    for key in _SAY_ORIENTATION:
        image.info.pop(key, None)
    return image


def _is_done(image: Image.Image) -> bool:
    """Whether an RGB image is small enough, opaque and upright, and says nothing else."""
    small = 0 < image.width * image.height <= MAX_PIXELS
    silent = not {*_SAY_ORIENTATION, "transparency"} & set(image.info)
    return small and silent and orientation(image) == 1


def _from_array(source: Any) -> Image.Image:
    """(H, W, 3), (H, W, 4) or (H, W) uint8 -> RGB; UsageError for anything else."""
    try:
        values = np.asarray(source)
    except (TypeError, RuntimeError, ValueError) as error:  # a tensor on an accelerator
        raise UsageError(
            f"The {type(source).__name__} is no array on the CPU.",
            found=f"{error}",
            repair="Move it to the CPU first.",
        ) from error
    channels = values.shape[2] if values.ndim == 3 else 1
    if values.dtype != np.uint8 or values.ndim not in (2, 3) or channels not in (1, 3, 4):
        raise UsageError(
            "The array is not an image.",
            found=f"Its shape is {values.shape} of {values.dtype}; expected (height, width, 3) "
            "RGB of uint8, 0 to 255.",
            repair="Move the channels to the end, and scale values to 0..255.",
        )
    if values.size == 0:
        raise DataError(
            "The image has no pixels.",
            found=f"The shape of the array is {values.shape}.",
            repair="Crop it again.",
        )
    if values.ndim == 3 and channels == 1:
        values = values[:, :, 0]
    with _decoding("The image given"):
        return _to_rgb(Image.fromarray(np.ascontiguousarray(values)), "The image given")


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 if there is none."""
    stated = image.getexif().get(ExifTags.Base.Orientation, 1)
    return stated if stated in _TURNS else 1


def _turned(image: Image.Image) -> Image.Image:
    # `ImageOps.exif_transpose` also rewrites the EXIF data, and so fails on any damaged entry.
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _as_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise DataError(
            f"{name} has floating-point pixels.",
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
