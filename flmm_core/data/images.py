"""Images of data sets: read at the size that their annotations were made for."""

from __future__ import annotations

from pathlib import Path

from PIL import ExifTags, Image

from flmm_core.errors import DataError
from flmm_core.images import to_image

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Of the files that are looked for as images; `read_image` reads others too."""


def read_image(path: str | Path, *, image_hw: tuple[int, int] | None = None) -> Image.Image:
    """The image as upright RGB; see `flmm_core.images.to_image`.

    Raises:
        DataError: The file is missing, empty, truncated, too large, not an image, or not of
            the size `image_hw`.
    """
    path = Path(path)
    image = to_image(path)
    if image_hw is not None and (image.height, image.width) != tuple(image_hw):
        raise DataError(
            f"The image {path} does not have the size that its annotations were made for.",
            found=f"It is {image.height} x {image.width} (height x width, upright), the "
            f"annotations say {image_hw[0]} x {image_hw[1]}.",
            repair="Check that this is the image that was annotated, neither resized nor turned.",
        )
    return image


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
