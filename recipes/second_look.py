"""When does a second look help? Tiny models say the shape of a colored thing, plainly and zoomed.

python -m recipes.second_look RUN               RUN: a trained head

The model continues "a red" about drawn scenes in which one thing is red, for things of several
sizes. What it names so is grounded, cropped, and shown beside the image ("both") or instead of it
("crop").
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from PIL import Image

from flmm_core import Grounder
from flmm_core.data.drawn.scenes import SHAPES, make_scene, paint
from flmm_core.spec import DEFAULT_PROMPT

SEED = 96
SIDES = (320, 384, 448)
RADII = {"tiny": (0.02, 0.03), "small": (0.03, 0.05), "medium": (0.05, 0.08), "large": (0.12, 0.2)}
"""Least and greatest radius of a thing in fractions of the shorter side."""


def questions(size: str, count: int) -> Iterator[tuple[Image.Image, str, str]]:
    """Images, the beginning of an answer, and the shape that follows."""
    index = 0
    while count:
        scene = make_scene((SEED, index), "plain", sides=SIDES, radius=RADII[size])
        index += 1
        colors = Counter(shape.color for shape in scene.shapes)
        single = [shape for shape in scene.shapes if colors[shape.color] == 1]
        if single:
            thing, count = single[0], count - 1
            article = "an" if thing.color[0] in "aeiou" else "a"
            yield Image.fromarray(paint(scene)[0]), f"{article} {thing.color}", thing.name


def shape_in(text: str) -> str:
    """The first shape that a text names."""
    return next((word.strip(".,") for word in text.split() if word.strip(".,") in SHAPES), "")


def second_looks(grounder: Grounder, size: str, count: int) -> dict[str, Any]:
    """How often the shape is right: plainly, with both views, with the crop alone."""
    right: Counter[str] = Counter()
    helped: Counter[str] = Counter()
    hurt: Counter[str] = Counter()
    for image, begun, truth in questions(size, count):
        talk = [
            {"role": "user", "content": DEFAULT_PROMPT},
            {"role": "assistant", "content": begun},
        ]
        plain = shape_in(grounder.chat(image, talk, max_new_tokens=3).text)
        right["plain"] += plain == truth
        for views in ("both", "crop"):
            thought = grounder.think(
                image, talk, look_at=f"{begun} {plain}".strip(), views=views, max_new_tokens=3
            )  # type: ignore[arg-type]
            said = shape_in(thought.text)
            right[views] += said == truth
            helped[views] += said == truth != plain
            hurt[views] += plain == truth != said
    shares = {way: round(right[way] / count, 3) for way in ("plain", "both", "crop")}
    return {"size": size, "questions": count, **shares, "helped": helped, "hurt": hurt}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure second looks of a tiny model.")
    parser.add_argument("head")
    parser.add_argument("--questions", type=int, default=100)
    given = parser.parse_args()
    loaded = Grounder.from_pretrained(given.head, device="cpu")
    for name in RADII:
        found = second_looks(loaded, name, given.questions)
        print(json.dumps({"head": given.head, **found}), flush=True)
