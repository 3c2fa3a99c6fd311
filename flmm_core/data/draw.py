"""Writes drawn scenes in the field's own formats, and keeps the default splits in a cache folder.

The default data is not special: it is written as RefCOCO files once and then read by the reader
that reads the real ones.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from flmm_core.data import coco_masks
from flmm_core.data.flat_painter import make_flat_scene, paint_flat
from flmm_core.data.jsonl import write_jsonl
from flmm_core.data.refcoco import write_refcoco
from flmm_core.data.sample import GroundedObject
from flmm_core.data.shapes import HARD_KINDS, VERSION, expressions, make_scene, paint
from flmm_core.data.writing import NewPicture, whole_folder
from flmm_core.errors import UsageError, did_you_mean

KINDS = ("plain", *HARD_KINDS, "flat")
"""Slices that can be drawn; "flat" are plain scenes by another painter."""

WRITERS = {"refcoco": write_refcoco, "jsonl": write_jsonl}

LEAST_VISIBLE = 0.3
"""An object of which less than this share shows is drawn, but nobody is asked to find it."""


@dataclass(frozen=True)
class Split:
    """A default split.

    Attributes:
        pictures: How many.
        seed: No two splits share one.
        kinds: Slices, picture by picture in turn.
        sentences: Most sentences an object.
    """

    pictures: int
    seed: int
    kinds: tuple[str, ...]
    sentences: int = 1


SPLITS = {
    "train": Split(3000, 71, ("plain", "plain", "plain", "plain", "plain", *HARD_KINDS), 2),
    "val": Split(100, 72, ("plain",)),
    "test": Split(320, 73, ("plain",)),
    "hard": Split(400, 74, HARD_KINDS),
}


def draw_pictures(
    pictures: int,
    seed: int,
    *,
    kinds: Sequence[str] = ("plain",),
    split: str = "train",
    sentences: int = 1,
) -> Iterator[NewPicture]:
    """Pictures of drawn scenes for a writer of data sets; the same arguments, the same pictures.

    Args:
        pictures: How many, at least 1.
        seed: Where all chance comes from.
        kinds: From `KINDS`; picture i is of kind i modulo their number.
        split: What the objects say they belong to.
        sentences: Most referring expressions an object.

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
        raise UsageError(f"{pictures} pictures cannot be drawn.", found="At least 1 is needed.")
    for index in range(pictures):
        yield _draw(index, (seed, index), kinds[index % len(kinds)], split, sentences)


def _draw(index: int, seed: tuple[int, ...], kind: str, split: str, sentences: int) -> NewPicture:
    """One picture with at least one object that can be asked for."""
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
                rle = coco_masks.encode(mask)
                objects.append(GroundedObject(rle, tuple(words), shape.name, kind, split))
        if objects:
            name = f"{split}_{kind}_{index:06}.png"
            return NewPicture(Image.fromarray(pixels), name, tuple(objects))
        attempt += 1


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
        drawn = draw_pictures(
            plan.pictures, plan.seed, kinds=plan.kinds, split=split, sentences=plan.sentences
        )
        write_refcoco(aside, drawn)
    return folder
