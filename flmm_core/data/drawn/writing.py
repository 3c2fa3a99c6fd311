"""Writes drawn scenes in the field's own formats, and keeps the default splits in a cache folder.

The default data is not special: it is written as RefCOCO files once and then read by the reader
that reads the real ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.drawn.flat_painter import make_flat_scene, paint_flat
from flmm_core.data.drawn.scenes import (
    COLOURS,
    HARD_KINDS,
    SHAPES,
    VERSION,
    Scene,
    expressions,
    make_scene,
    paint,
)
from flmm_core.data.formats.coco import write_coco
from flmm_core.data.formats.grefcoco import write_grefcoco
from flmm_core.data.formats.jsonl import write_jsonl
from flmm_core.data.formats.labelme import write_labelme
from flmm_core.data.formats.png import write_narratives
from flmm_core.data.formats.reasonseg import write_reasonseg
from flmm_core.data.formats.refcoco import write_refcoco
from flmm_core.data.formats.shared.writing import NewImage, whole_folder
from flmm_core.data.sample import GroundedObject, Mask
from flmm_core.errors import UsageError, did_you_mean

KINDS = ("plain", *HARD_KINDS, "flat")
"""Slices that can be drawn; "flat" are plain scenes by another painter."""


@dataclass(frozen=True)
class Format:
    """A format that scenes can be written in.

    Attributes:
        write: Its writer: (folder, images).
        extras: What else of a scene it is made for, see `draw_images`.
    """

    write: Callable[[Path, Iterable[NewImage]], Path]
    extras: tuple[str, ...] = ()


FORMATS: Mapping[str, Format] = {
    "refcoco": Format(write_refcoco),
    "grefcoco": Format(write_grefcoco, ("pair", "absent")),
    "png": Format(write_narratives, ("pair", "background")),
    "reasonseg": Format(write_reasonseg, ("ignore",)),
    "jsonl": Format(write_jsonl),
    "coco": Format(write_coco),
    "labelme": Format(write_labelme),
}

EXTRAS = ("pair", "absent", "background", "ignore")

LEAST_VISIBLE = 0.3
"""An object of which less than this share shows is drawn, but nobody is asked to find it."""


@dataclass(frozen=True)
class Split:
    """A default split.

    Attributes:
        images: How many.
        seed: No two splits share one.
        kinds: Slices, image by image in turn.
        sentences: Most sentences an object.
        extras: From `EXTRAS`.
    """

    pictures: int
    seed: int
    kinds: tuple[str, ...]
    sentences: int = 1
    extras: tuple[str, ...] = ()


SPLITS = {
    "train": Split(3000, 71, ("plain", "plain", "plain", "plain", "plain", *HARD_KINDS), 2),
    "val": Split(100, 72, ("plain",)),
    "test": Split(300, 73, ("plain",)),
    "hard": Split(250, 74, HARD_KINDS),
    "absent": Split(60, 75, ("plain",), extras=("absent",)),
}


def draw_images(
    pictures: int,
    seed: int,
    *,
    kinds: Sequence[str] = ("plain",),
    split: str = "train",
    sentences: int = 1,
    extras: Sequence[str] = (),
) -> Iterator[NewImage]:
    """Images of drawn scenes for a writer of data sets; the same arguments, the same images.

    Args:
        images: How many, at least 1.
        seed: Where all chance comes from.
        kinds: From `KINDS`; image i is of kind i modulo their number.
        split: What the objects say they belong to.
        sentences: Most referring expressions an object.
        extras: From `EXTRAS`: "pair" adds the first two objects together, "absent" a colour and
            shape that is not there (slice "absent"), "background" what no object covers (tag
            "stuff"); "ignore" has every object ignore the outlines of the others.

    Raises:
        UsageError: A kind is unknown, or `pictures` is below 1.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise UsageError(
                f"Unknown kind of scene '{kind}'. {did_you_mean(kind, KINDS)}".rstrip(),
                found=f"Known: {', '.join(KINDS)}.",
            )
    if pictures < 1:
        raise UsageError(f"{pictures} images cannot be drawn.", found="At least 1 is needed.")
    for index in range(pictures):
        kind = kinds[index % len(kinds)]
        yield _draw(index, (seed, index), kind, split, sentences, extras)


def _draw(
    index: int,
    seed: tuple[int, ...],
    kind: str,
    split: str,
    sentences: int,
    extras: Sequence[str],
) -> NewImage:
    """One image with at least one object that can be asked for."""
    attempt = 0
    while True:
        if kind == "flat":
            scene = make_flat_scene((*seed, attempt))
            pixels, masks, whole = paint_flat(scene)
        else:
            scene = make_scene((*seed, attempt), kind)  # type: ignore[arg-type]
            pixels, masks, whole = paint(scene)
        rng = np.random.default_rng((*seed, attempt, 1))
        objects = []
        for shape, mask, area in zip(scene.shapes, masks, whole, strict=True):
            words = expressions(scene, shape, rng)[:sentences]
            if words and mask.sum() >= LEAST_VISIBLE * area:
                code = rle.encode(mask)
                objects.append(GroundedObject(code, tuple(words), shape.name, kind, split))
        if objects:
            name = f"{split}_{kind}_{index:06}.png"
            missing = _missing(scene, np.random.default_rng((*seed, attempt, 2)))
            things = _with_extras(objects, missing, np.any(masks, axis=0), extras)
            return NewImage(Image.fromarray(pixels), name, things)
        attempt += 1


def _with_extras(
    things: Sequence[GroundedObject],
    missing: tuple[str, str],
    covered: NDArray[np.bool_],
    extras: Sequence[str],
) -> tuple[GroundedObject, ...]:
    """The objects and what `extras` add to them.

    Args:
        things: Objects that can be asked for.
        missing: Colour and shape of a thing that is not there.
        covered: (H, W) bool, all that was painted.
        extras: From `EXTRAS`.
    """
    masks = [thing.read_mask() for thing in things]
    first, more = things[0], []
    if "pair" in extras and len(things) > 1:
        words = f"{first.sentences[0]} and {things[1].sentences[0]}"
        pair = rle.merge(masks[:2])
        more.append(replace(first, mask=pair, sentences=(words,), parts=tuple(masks[:2])))
    if "absent" in extras:
        nothing, words = rle.empty(*covered.shape), f"the {missing[0]} {missing[1]}"
        absent = replace(first, mask=nothing, sentences=(words,), category=missing[1])
        more.append(replace(absent, slice="absent"))
    if "background" in extras:
        rest, tags = rle.encode(~covered), frozenset({"stuff"})
        words = "the background"
        more.append(replace(first, mask=rest, sentences=(words,), category="background", tags=tags))
    if "ignore" in extras:
        things = [replace(t, ignore=_ignored(m, masks)) for t, m in zip(things, masks, strict=True)]
    return (*things, *more)


def _missing(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    """A colour and a shape that no thing of a scene has together; one of them may be there."""
    painted = {shape.kind for shape in scene.shapes}
    others = [pair for pair in product(COLOURS, SHAPES) if pair not in painted]
    return others[int(rng.integers(len(others)))]


def _ignored(mask: Mask, masks: Sequence[Mask]) -> Mask | None:
    """The outlines of the other objects, one pixel wide."""
    others = [decoded for m in masks if m is not mask for decoded in [rle.decode(m)]]
    if not others:
        return None
    region = np.any(others, axis=0)
    padded = np.pad(region, 1)
    inside = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return rle.encode(region & ~inside)


def cache_folder() -> Path:
    """Where drawn splits are kept: $FLMM_CACHE, or flmm in the user's cache folder."""
    if chosen := os.environ.get("FLMM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "flmm"


def ensure_shapes(split: str) -> Path:
    """The RefCOCO folder of a default split, drawn at the first call and kept for the next.

    Raises:
        UsageError: There is no such split.
    """
    if split not in SPLITS:
        raise UsageError(
            f"Unknown split '{split}' of 'shapes'. {did_you_mean(split, SPLITS)}".rstrip(),
            found=f"Known: {', '.join(SPLITS)}.",
        )
    plan = SPLITS[split]
    folder = cache_folder() / f"shapes-{VERSION}-{split}-{plan.pictures}"
    if folder.is_dir():
        return folder
    with whole_folder(folder) as aside:
        drawn = draw_images(
            plan.pictures,
            plan.seed,
            kinds=plan.kinds,
            split=split,
            sentences=plan.sentences,
            extras=plan.extras,
        )
        write_refcoco(aside, drawn)
    return folder
