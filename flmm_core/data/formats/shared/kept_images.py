"""Images that a data set holds within another file, as files of the user's cache folder."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

from PIL import Image

from flmm_core.files import cache_folder, write_bytes


def keep_image(data: bytes, kind: str) -> Path:
    """The file of an encoded image, written once; equal images are one file.

    Args:
        data: The encoded image, as it is stored.
        kind: The folder of the cache that it is kept in.

    Raises:
        ValueError: It is not an image.
    """
    try:
        with Image.open(io.BytesIO(data)) as stored:
            ending = str(stored.format).lower().replace("jpeg", "jpg")
    except Exception as error:  # decoders raise nearly anything on broken data
        raise ValueError(str(error) or type(error).__name__) from error
    path = cache_folder() / kind / f"{hashlib.sha256(data).hexdigest()}.{ending}"
    if not path.is_file():
        own = path.with_name(f"{os.getpid()}-{path.name}")  # others may be writing it too
        write_bytes(own, data)
        own.replace(path)
    return path
