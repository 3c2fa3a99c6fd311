"""Draws images with masks and phrases, for the writers of data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from typing import cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.drawn.flat_painter import make_flat_scene, paint_flat
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
from flmm_core.data.sample import GroundedObject, Mask
from flmm_core.errors import UsageError, did_you_mean

KINDS = ("plain", *HARD_KINDS, "flat")
"""Slices that can be drawn; "flat" are plain scenes by another painter."""

LEAST_VISIBLE = 0.3
"""Objects with a smaller visible share are drawn, but have no phrase."""


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
        extras: "pair" adds the union of the first two objects, "absent" a color and shape that is
            not in the image (slice "absent"), "background" what no object covers (tag "stuff");
            "ignore" has every object ignore the outlines of the others.

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
        while not objects:  # until an object has a phrase
            chance = seed, index, attempt
            flat = make_flat_scene(chance) if kind == "flat" else None
            scene = flat or make_scene(chance, cast(Kind, kind))
            pixels, masks, whole = paint_flat(scene) if flat else paint(scene)
            rng = np.random.default_rng((*chance, 1))
            for shape, mask, area in zip(scene.shapes, masks, whole, strict=True):
                words = expressions(scene, shape, rng)[:sentences]
                if words and mask.sum() >= LEAST_VISIBLE * area:
                    code = rle.encode(mask)
                    objects.append(GroundedObject(code, tuple(words), shape.name, kind, split))
            attempt += 1
        missing = _missing(scene, np.random.default_rng((*chance, 2)))
        things = _with_extras(objects, missing, np.any(masks, axis=0), extras)
        yield NewImage(Image.fromarray(pixels), f"{split}_{kind}_{index:06}.png", things)


def _with_extras(
    things: Sequence[GroundedObject],
    missing: tuple[str, str],
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
    if "absent" in extras:
        nothing, words = rle.empty(*covered.shape), f"the {missing[0]} {missing[1]}"
        absent = replace(first, mask=nothing, sentences=(words,), category=missing[1])
        more.append(replace(absent, slice="absent", absent=True))
    if "background" in extras:
        rest, words = rle.encode(~covered), "the background"
        ground = replace(first, mask=rest, sentences=(words,), category="background")
        more.append(replace(ground, tags=frozenset({"stuff"})))
    if "ignore" in extras:
        things = [replace(t, ignore=_ignored(m, masks)) for t, m in zip(things, masks, strict=True)]
    return (*things, *more)


def _missing(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A color and a shape that no thing of a scene has together; one of them may be there."""
    painted = {shape.kind for shape in scene.shapes}
    others = [pair for pair in product(COLORS, SHAPES) if pair not in painted]
    return others[int(rng.integers(len(others)))]


def _ignored(mask: Mask, masks: Sequence[Mask]) -> Mask | None:
    """The outlines of the other objects, one pixel wide."""
    others = [m for m in masks if m is not mask]
    if not others:
        return None
    region = rle.decode(rle.merge(others))
    padded = np.pad(region, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return rle.encode(region & ~inside)
