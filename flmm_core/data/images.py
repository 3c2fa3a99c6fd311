"""Images of data sets: read at the size and in the orientation that they were annotated in."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from flmm_core.errors import DataError
from flmm_core.images import orientation, to_image

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
"""Of the files that are looked for as images; `read_image` reads others too."""


def read_image(
    path: str | Path, *, image_hw: tuple[int, int] | None = None, as_stored: bool = False
) -> Image.Image:
    """The image as RGB; see `flmm_core.images.to_image`.

    It is upright, as most tools show it. `as_stored` says that it was annotated as it is stored,
    whatever its EXIF data say. If `image_hw` is its size only the other way, it is read that way.

    Raises:
        DataError: The file is missing, empty, truncated, too large, not an image, or not of
            the size `image_hw`.
    """
    path = Path(path)
    image = to_image(path, upright=not as_stored)
    if image_hw is None or image.size[::-1] == tuple(image_hw):
        return image
    if image.size == tuple(image_hw):
        other = to_image(path, upright=as_stored)
        if other.size[::-1] == tuple(image_hw):
            return other
    raise DataError(
        f"The image {path} does not have the size that its annotations were made for.",
        found=f"It is {image.height} x {image.width} (height x width, "
        f"{'as stored' if as_stored else 'upright'}), the annotations say "
        f"{image_hw[0]} x {image_hw[1]}.",
        repair="Check that this is the image that was annotated, neither resized nor turned.",
    )


def is_left_turned(path: Path, image_hw: tuple[int, int], *, as_stored: bool = False) -> bool:
    """Whether `read_image` leaves an image as it is stored although EXIF data turn it."""
    with Image.open(path) as file:
        if orientation(file) == 1:
            return False
    upright, stored = image_size_of(path), image_size_of(path, upright=False)
    return stored == image_hw and (as_stored or upright != image_hw)


def size_for_mask(path: Path, mask_hw: tuple[int, int]) -> tuple[int, int]:
    """(H, W) of an image: that of its mask if it has it upright or as stored, else upright."""
    is_stored = image_size_of(path, upright=False) == mask_hw
    return mask_hw if is_stored else image_size_of(path)


def image_size_of(path: Path, *, upright: bool = True) -> tuple[int, int]:
    """(H, W) of an image as read by `read_image`, from its header; DataError if it has none.

    `upright` respects the EXIF orientation, for which a PNG has to be read completely.
    """
    try:
        with Image.open(path) as stored:
            width, height = stored.size
            return (width, height) if upright and orientation(stored) >= 5 else (height, width)
    except Exception:
        image = read_image(path)  # raises the error that describes the problem
        return image.height, image.width
