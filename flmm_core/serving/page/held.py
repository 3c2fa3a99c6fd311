"""Images and what was found in them, in memory only and for as long as there is room."""

from __future__ import annotations

import io
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import Generic, TypeVar

from PIL import Image

HELD_PIXELS = 200_000_000
"""Images are forgotten, those that were used longest ago first, while more than these are held."""
HELD_IMAGES, HELD_RESULTS = 16, 64
SHOWN = 1600
"""The longest side of what the browser is sent, in pixels."""
EXACT = 400_000
"""Images of at most so many pixels are sent without loss."""

Value = TypeVar("Value")


@dataclass(frozen=True, eq=False)
class HeldImage:
    """An image (RGB, upright) and what a browser shows of it: a file, at most `SHOWN` long."""

    image: Image.Image
    shown: bytes
    media_type: str

    @classmethod
    def of(cls, image: Image.Image) -> HeldImage:
        """An image with its file for the browser."""
        scale = SHOWN / max(image.size)
        small = image
        if scale < 1:
            size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
            small = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3)
        file = io.BytesIO()
        if small.width * small.height <= EXACT:
            small.save(file, "PNG", compress_level=1)
            return cls(image, file.getvalue(), "image/png")
        small.save(file, "JPEG", quality=92)
        return cls(image, file.getvalue(), "image/jpeg")

    @property
    def pixels(self) -> int:
        """Width times height."""
        return self.image.width * self.image.height


@dataclass
class Shelf(Generic[Value]):
    """The values that were used last, each by a name that cannot be guessed."""

    most: int
    kept: OrderedDict[str, Value] = field(default_factory=OrderedDict)
    lock: Lock = field(default_factory=Lock)

    def put(self, value: Value) -> str:
        """Keep a value, and forget the one that was used longest ago if there are too many."""
        name = secrets.token_urlsafe(12)
        with self.lock:
            self.kept[name] = value
            while len(self.kept) > 1 and self.is_full():
                self.kept.popitem(last=False)
        return name

    def get(self, name: str) -> Value | None:
        """The value of a name; None if it is no longer kept."""
        with self.lock:
            if name in self.kept:
                self.kept.move_to_end(name)
            return self.kept.get(name)

    def is_full(self) -> bool:
        """Whether there are too many."""
        return len(self.kept) > self.most


class ImageShelf(Shelf[HeldImage]):
    """Images, as many as there is room for."""

    def is_full(self) -> bool:
        return super().is_full() or sum(i.pixels for i in self.kept.values()) > HELD_PIXELS
