"""Example images, drawn on the spot."""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from flmm_core.data.drawn.scenes import IMAGE_SIDES, Kind, make_scene, paint
from flmm_core.data.drawn.writing import absent_things

SCENES: tuple[tuple[int, Kind], ...] = (
    (5, "plain"), (0, "plain"), (3, "texture"), (8, "plain"), (6, "occlusion"),
)  # fmt: skip
"""Seed and kind of each."""
SCALE = 4
"""How much larger they are drawn than those of data sets."""


@dataclass(frozen=True)
class Example:
    """An image, its name and phrases for it, the last of which names nothing in it."""

    name: str
    phrases: tuple[str, ...]
    png: bytes


@cache
def examples() -> tuple[Example, ...]:
    """All examples, the same everywhere."""
    return tuple(draw(number, *scene) for number, scene in enumerate(SCENES, start=1))


def draw(number: int, seed: int, kind: Kind) -> Example:
    """Example `number`, the scene of a seed and a kind."""
    scene = make_scene((0xDE30, seed), kind, sides=tuple(SCALE * side for side in IMAGE_SIDES))
    pixels, _, _ = paint(scene)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    (absent,) = absent_things(scene, 1, 1, np.random.default_rng(seed))
    named = dict.fromkeys(shape.words for shape in scene.shapes)
    return Example(f"Drawn shapes {number}", (*named, absent.sentences[0]), file.getvalue())
