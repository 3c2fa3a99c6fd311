"""Draws images with masks and phrases, for the writers of data sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.drawn.flat_painter import make_flat_scene, paint_flat
from flmm_core.data.drawn.narrations import narration
from flmm_core.data.drawn.scenes import (
    COLORS,
    HARD_KINDS,
    SHAPES,
    Kind,
    Scene,
    expressions,
    make_scene,
    paint,
)
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.sample import GroundedObject, Mask, Segment
from flmm_core.errors import UsageError, did_you_mean

KINDS = ("plain", *HARD_KINDS, "flat")
"""Slices that can be drawn; "flat" are plain scenes by another painter."""

LEAST_VISIBLE = 0.3
"""Objects with a smaller visible share are drawn, but have no phrase."""


ABSENT_SHARES = (0.4, 0.2, 0.2, 0.2)
"""How likely an absent name takes both words, its color, its shape or neither from the image."""


def draw_images(
    count: int,
    seed: int,
    *,
    kinds: Sequence[str] = ("plain",),
    split: str = "train",
    sentences: int = 1,
    extras: Sequence[str] = (),
) -> Iterator[NewImage]:
    """Images of drawn scenes for a writer of data sets; the same arguments, the same images.

    Args:
        count: Number of images, at least 1.
        seed: Of all random choices.
        kinds: From `KINDS`, in turn.
        split: Of the objects.
        sentences: Maximum number of referring expressions per object.
        extras: "pair" adds the union of the first two objects, "absent" a phrase that names nothing
            (see `absent_things`), "half absent" as many as there are objects, in between them,
            "some absent" none to as many, and with both a third of all phrases begins with "a" or
            "an"; "background" what no object covers (tag "stuff"); "ignore" has every object ignore
            the outlines of the others; "narration" adds a caption that names them.

    Raises:
        UsageError: A kind is unknown, or `count` is below 1.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(
                f"Unknown kind of scene '{kind}'. {did_you_mean(kind, KINDS)}".rstrip(),
                found=f"Known: {', '.join(KINDS)}.",
            )
    if count < 1:
        raise UsageError(f"{count} images cannot be drawn.", found="At least 1 is needed.")
    for index in range(count):
        kind, attempt = kinds[index % len(kinds)], 0
        objects: list[GroundedObject] = []
        named: dict[int, int] = {}
        while not objects:  # until an object has a phrase
            chance = seed, index, attempt
            flat = make_flat_scene(chance) if kind == "flat" else None
            scene = flat or make_scene(chance, cast(Kind, kind))
            pixels, masks, whole = paint_flat(scene) if flat else paint(scene)
            rng = np.random.default_rng((*chance, 1))
            parts = zip(scene.shapes, masks, whole, strict=True)
            for number, (shape, mask, area) in enumerate(parts):
                words = expressions(scene, shape, rng)[:sentences]
                if words and mask.sum() >= LEAST_VISIBLE * area:
                    named[number] = len(objects)
                    code = rle.encode(mask)
                    objects.append(GroundedObject(code, tuple(words), shape.name, kind, split))
            attempt += 1
        wanted = int("absent" in extras)
        if mixed := {"some absent", "half absent"} & set(extras):
            least = len(objects) if "half absent" in extras else 0
            wanted = int(np.random.default_rng((*chance, 3)).integers(least, len(objects) + 1))
        chances = np.random.default_rng((*chance, 2))
        absent = absent_things(scene, wanted, sentences, chances, split)
        things = _with_extras(objects, absent, np.any(masks, axis=0), extras)
        if mixed:
            things = tuple(
                _reworded(things[place], chances) for place in chances.permutation(len(things))
            )
        captions = []
        if "narration" in extras:
            told = narration(scene, np.random.default_rng((*chance, 4)))
            captions.append([_renumbered(piece, named) for piece in told])
        file_name = f"{split}_{kind}_{index:06}.png"
        yield NewImage(Image.fromarray(pixels), file_name, things, captions)


def _renumbered(piece: Segment, named: Mapping[int, int]) -> Segment:
    """A piece about an object by its index in `named`; about any other, plain words."""
    return replace(piece, phrase=None if piece.phrase is None else named.get(piece.phrase))


def _with_extras(
    things: Sequence[GroundedObject],
    absent: Sequence[GroundedObject],
    covered: NDArray[np.bool_],
    extras: Sequence[str],
) -> tuple[GroundedObject, ...]:
    """The objects and what `extras` add; `covered` (H, W) is what was painted."""
    masks = [thing.read_mask() for thing in things]
    first, more = things[0], []
    if "pair" in extras and len(things) > 1:
        words = f"{first.sentences[0]} and {things[1].sentences[0]}"
        pair = rle.merge(masks[:2])
        more.append(replace(first, mask=pair, sentences=(words,), parts=tuple(masks[:2])))
    more += absent
    if "background" in extras:
        rest, words = rle.encode(~covered), "the background"
        ground = replace(first, mask=rest, sentences=(words,), category="background")
        more.append(replace(ground, tags=frozenset({"stuff"})))
    if "ignore" in extras:
        things = [replace(t, ignore=_ignored(m, masks)) for t, m in zip(things, masks, strict=True)]
    return (*things, *more)


def absent_things(
    scene: Scene, count: int, sentences: int, rng: np.random.Generator, split: str = ""
) -> list[GroundedObject]:
    """`count` colors and shapes that no object of a scene has together, without a pixel.

    Two in five are of the slice "swapped", the color of one object with the shape of another. The
    others are "absent": the color is missing, or the shape, or both.
    """
    painted = {shape.kind for shape in scene.shapes}
    colors, names = ({kind[part] for kind in painted} for part in (0, 1))
    rest = [pair for pair in product(COLORS, SHAPES) if pair not in painted]
    groups = [
        [pair for pair in rest if (pair[0] in colors, pair[1] in names) == parts]
        for parts in ((True, True), (True, False), (False, True), (False, False))
    ]
    things: list[GroundedObject] = []
    while len(things) < count:
        which = int(rng.choice(4, p=ABSENT_SHARES))
        if not groups[which]:
            continue
        color, name = groups[which].pop(int(rng.integers(len(groups[which]))))
        forms = [f"the {color} {name}", f"{color} {name}"]
        words = tuple(forms[place] for place in rng.permutation(2))[:sentences]
        nothing = rle.empty(scene.height, scene.width)
        part = "absent" if which else "swapped"
        things.append(GroundedObject(nothing, words, name, part, split, absent=True))
    return things


def _reworded(thing: GroundedObject, rng: np.random.Generator) -> GroundedObject:
    """The object, a third of its sentences with an indefinite article."""
    sentences = []
    for text in thing.sentences:
        name = text.removeprefix("the ")
        article = "an" if name[0] in "aeiou" else "a"
        sentences.append(f"{article} {name}" if rng.random() < 1 / 3 else text)
    return replace(thing, sentences=tuple(sentences))


def _ignored(mask: Mask, masks: Sequence[Mask]) -> Mask | None:
    """The outlines of the other objects, one pixel wide."""
    others = [m for m in masks if m is not mask]
    if not others:
        return None
    region = rle.decode(rle.merge(others))
    padded = np.pad(region, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return rle.encode(region & ~inside)
