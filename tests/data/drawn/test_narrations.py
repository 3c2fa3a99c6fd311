from __future__ import annotations

import re

import numpy as np

from flmm_core.data.drawn.narrations import narration, place_words
from flmm_core.data.drawn.scenes import Scene, Shape, make_scene


def test_narration_names_every_shape_once() -> None:
    scene = make_scene(11, "plain")
    pieces = narration(scene, np.random.default_rng(0))
    assert sorted(p.phrase for p in pieces if p.phrase is not None) == list(
        range(len(scene.shapes))
    )
    text = "".join(piece.text for piece in pieces)
    assert text.endswith(".")
    assert all(shape.words in text for shape in scene.shapes)
    assert not re.search(r"\ba orange|\ban [^o]", text)


def test_place_words_split_the_image_in_thirds() -> None:
    scene = Scene(90, 90, (), "flat", "plain", 0)
    words = [
        place_words(scene, Shape("star", "red", "small", x, y, 5, 0, (0, 0, 0)))
        for y in (10, 45, 80)
        for x in (10, 45, 80)
    ]
    assert words == [
        "in the top left", "at the top", "in the top right",
        "on the left", "in the middle", "on the right",
        "in the bottom left", "at the bottom", "in the bottom right",
    ]  # fmt: skip
