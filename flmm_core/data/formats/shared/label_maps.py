"""Label maps: images whose pixels say of which class, or of which object, they are."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.class_masks import ClassMasks
from flmm_core.data.records import read_bytes, sentence
from flmm_core.data.sample import GroundedObject
from flmm_core.errors import DataError
from flmm_core.images import MAX_PIXELS

BACKGROUND, VOID = 0, 255
"""Values that mark no class unless they have a name; the pixels of `VOID` are not scored."""
BACKGROUND_NAMES = ("background", "_background_", "unlabeled", "unlabelled", "none")
VOID_NAMES = ("void", "ignore", "ignored", "__ignore__", "ignore_region")
"""Names of values that are no classes."""


def open_mask(path: Path) -> Image.Image:
    """A mask as stored: not turned, with its palette; DataError if missing or broken."""
    return decode_mask(read_bytes(path), f"the mask {path}")


def decode_mask(data: bytes, where: str) -> Image.Image:
    """As `open_mask`; `where` names the mask in messages."""
    try:
        image = Image.open(io.BytesIO(data))
        if image.width * image.height > MAX_PIXELS:
            raise Image.DecompressionBombError(f"It has more than {MAX_PIXELS / 1e6:g} megapixels")
        image.load()
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken data
        raise DataError(
            f"{sentence(where)} is not an image, or is broken.",
            found=f"Decoding it ended with: {str(error) or type(error).__name__}.",
            repair="Save or download it again.",
        ) from error
    return image


def marked_pixels(image: Image.Image) -> NDArray[np.bool_]:
    """(H, W) bool: what a mask of one object marks, in white, by a palette or by opacity."""
    values, least = np.asarray(image), 0
    if image.mode in ("RGBA", "LA") and image.getextrema()[-1] != (255, 255):
        values, least = values[..., -1], 127
    elif image.mode != "P":
        values = values[..., :3].max(axis=-1) if values.ndim == 3 else values
        least = 127 if values.max(initial=0) > 127 else 0  # white with gray seams, or 1
    return np.asarray(values > least, dtype=np.bool_)


def values_of(mask: Image.Image, path: Path) -> NDArray[np.int32]:
    """(H, W) numbers of a label map: gray values, or the indices of a palette.

    Raises:
        DataError: It has colors; `path` names it.
    """
    values = np.asarray(mask)
    if values.ndim == 3:
        bands = values[..., :3] if values.shape[-1] > 2 else values[..., :1]
        if (bands != bands[..., :1]).any():
            raise DataError(
                f"The mask {path} has colors, but its classes have numbers.",
                repair="Save it with a palette or in gray, or say which class has which color.",
            )
        values = bands[..., 0]
    return values.astype(np.int32)


def colors_of(mask: Image.Image) -> NDArray[np.int32]:
    """(H, W) colors of a label map, each as `color_code`."""
    pixels = np.asarray(mask.convert("RGB"), dtype=np.int32)
    return pixels @ np.array((65536, 256, 1), dtype=np.int32)


def color_code(red: int, green: int, blue: int) -> int:
    """One number for a color of 8 bits a channel."""
    return red * 65536 + green * 256 + blue


def class_objects(
    values: NDArray[np.int32],
    names: Mapping[int, str],
    where: str,
    findings: Findings,
    *,
    split: str,
    void: int = VOID,
    phrases: Mapping[str, str] | None = None,
) -> tuple[GroundedObject, ...]:
    """The objects of a label map: what has a name; none if nothing has.

    Args:
        values: (H, W) as of `values_of` or `colors_of`.
        names: The class of each value; equal names are one class. Those among `BACKGROUND_NAMES`
            are none; the pixels of those among `VOID_NAMES` are not scored.
        where: Names the label map in messages. Values without a name are listed in `findings`,
            except `BACKGROUND` and `void`.
        void: The value of pixels that are not scored, if it has no name.
        phrases: The phrases of classes whose name does not say it.
    """
    masks = ClassMasks((values.shape[0], values.shape[1]), split, phrases or {})
    ignored = np.zeros(values.shape, dtype=np.bool_)
    for value in present(values):
        name = names.get(value, "void" if value == void else "")
        if name.lower() in VOID_NAMES:
            ignored |= values == value
        elif name and name.lower() not in BACKGROUND_NAMES:
            masks.add(name, values == value, where)
        elif not name and value != BACKGROUND:
            findings.skip(f"the value {value} of {where}", "it has no name")
    return masks.objects(ignored)


def present(values: NDArray[np.int32]) -> list[int]:
    """The values that occur; counting is much faster than sorting."""
    if values.size and values.min() >= 0 and values.max() < 2**16:
        return [int(value) for value in np.flatnonzero(np.bincount(values.ravel()))]
    return [int(value) for value in np.unique(values)]
