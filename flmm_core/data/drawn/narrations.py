"""Captions that name every shape of a drawn scene once, as in panoptic narrative grounding."""

from __future__ import annotations

import numpy as np

from flmm_core.data.drawn.scenes import Scene, Shape, relations
from flmm_core.segment import Segment


def place_words(scene: Scene, shape: Shape) -> str:
    """Where a shape lies, by thirds of the image: "in the top left", "on the right", ..."""
    row = ("top", "", "bottom")[min(2, int(3 * shape.y / scene.height))]
    column = ("left", "", "right")[min(2, int(3 * shape.x / scene.width))]
    if row and column:
        return f"in the {row} {column}"
    if row:
        return f"at the {row}"
    return f"on the {column}" if column else "in the middle"


def narration(scene: Scene, rng: np.random.Generator) -> tuple[Segment, ...]:
    """A sentence that names every shape once, in random order: pieces, phrase = shape's index."""
    order = rng.permutation(len(scene.shapes))
    pieces: list[Segment] = []
    for position, index in enumerate(order):
        shape = scene.shapes[int(index)]
        if position:
            pieces.append(Segment(" and" if position == len(order) - 1 else ","))
        words = f"{shape.size} {shape.words}" if rng.random() < 0.4 else shape.words
        article = "an" if words[0] in "aeiou" else "a"
        pieces.append(Segment(f"{' ' if position else ''}{article} {words}", int(index)))
        draw, related = rng.random(), relations(scene, shape)
        if draw < 0.55:
            pieces.append(Segment(f" {place_words(scene, shape)}"))
        elif draw < 0.75 and related:
            pieces.append(Segment(f" {related[int(rng.integers(len(related)))]}"))
    pieces.append(Segment("."))
    return tuple(pieces)
