"""The image of a request: its size is looked at before a pixel is decoded."""

from __future__ import annotations

import base64
import binascii
import io
import warnings

from PIL import Image

from flmm_core.errors import shortened
from flmm_core.images import to_image
from flmm_core.serving.budget import Account
from flmm_core.serving.refusals import RefusalError

BYTES_A_PIXEL = 6
"""Of a decoded image and a copy of it, as turning one makes."""


def decode_image(data: bytes, account: Account, pixels: int) -> Image.Image:
    """An encoded image as upright RGB; it has at most so many `pixels`.

    Raises:
        DataError: It is broken or of no format that can be read.
        RefusalError: 400 if it is empty, 413 if it has too many pixels, 429 if there is no memory.
    """
    if not data:
        raise RefusalError(400, "The image is empty.", param="image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here counts
        try:
            stored = Image.open(io.BytesIO(data))
        except Image.DecompressionBombError:
            raise _too_many("more", pixels) from None
        except Exception:  # decoders raise nearly anything on broken data
            raise RefusalError(
                400,
                "The image is of no format that can be read: use JPEG, PNG, WebP, TIFF, BMP or "
                "GIF.",
                param="image",
            ) from None
    with stored:
        size = stored.width * stored.height
        if size > pixels:
            raise _too_many(f"{size / 1e6:.1f}", pixels)
        account.take(size * BYTES_A_PIXEL)
        return to_image(stored)


def _too_many(found: str, pixels: int) -> RefusalError:
    return RefusalError(
        413,
        f"The image has too many pixels: {found} megapixels; the limit is {pixels / 1e6:g}.",
        param="image",
    )


def from_text(text: str, account: Account) -> bytes:
    """Base64, plain or as a data URL -> bytes.

    Raises:
        RefusalError: 400 if it is neither.
    """
    data = text
    if text[:5].lower() == "data:":
        head, comma, data = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise RefusalError(
                400, "The data URL is not of the form data:image/png;base64,...", param="image"
            )
    account.take(len(data) * 3 // 4)
    try:
        return base64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        raise RefusalError(
            400,
            "The image is neither base64, a data URL nor an http(s) URL.",
            param="image",
        ) from None


def is_url(text: str) -> bool:
    """Whether a text is an http(s) URL."""
    return text[:8].lower().startswith(("http://", "https://"))


def refuse_url(text: str) -> RefusalError:
    """The refusal of a server that fetches nothing."""
    return RefusalError(
        400,
        f"The server fetches no URLs, such as {shortened(text)!r}: send the image as base64. It "
        "fetches them with --allow-urls.",
        param="image",
    )
