"""Splits a source by image into training, validation and test data, in our own format."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from flmm_core.config import MAX_SKIPPED
from flmm_core.data.findings import Skipped, Track
from flmm_core.data.sample import AnnotatedImage
from flmm_core.data.tools.convert import read_by_image, write_by_split
from flmm_core.errors import UsageError

Group = list[list[AnnotatedImage]]
"""The records of image files that stay together, by file."""


def split_source(
    text: str,
    folder: Path,
    shares: Mapping[str, float],
    *,
    seed: int = 0,
    link: bool = False,
    max_skipped: str = MAX_SKIPPED,
    track: Track = iter,
) -> tuple[dict[str, int], tuple[Skipped, ...]]:
    """Write a source to FOLDER/train and one folder for each share, whole or not at all.

    No image is in two of them, nor are two files with the same bytes. Every part gets its share of
    each category as far as that is possible. It follows from the images and the seed alone.

    Args:
        text: `NAME[:PATH][@SPLIT]`.
        shares: Of the images, by split ("val", "test"); the others are "train". A split with a
            share of 0 is not made.
        link: As of `convert_source`, and so are `max_skipped` and the errors.

    Returns:
        The number of images of each split, and the skipped items.

    Raises:
        UsageError: The shares leave nothing to train on, there are too few images, or see
            `convert_source`.
    """
    asked = ", ".join(f"{share:g} for {name}" for name, share in shares.items())
    if sum(shares.values()) >= 1:
        raise UsageError(
            f"The shares ({asked}) leave nothing to train on.",
            repair="Their sum must be less than 1.",
        )
    _, files, skipped = read_by_image(text, max_skipped)
    groups = _same_bytes(files)
    total = sum(map(len, groups))
    sizes = {name: max(1, round(share * total)) for name, share in shares.items() if share}
    sizes["train"] = total - sum(sizes.values())
    if len(groups) < len(sizes) or sizes["train"] < 1:
        raise UsageError(
            f"'{text}' has too few images to be split ({asked}).",
            found=f"It has {len(groups)} different ones; every part needs one.",
            repair="Annotate more images, or give smaller shares.",
        )
    parts = _balanced(groups, sizes, seed)
    order = [name for name in ("train", *shares) if name in parts]
    splits = {name: parts[name] for name in order}
    write_by_split(folder, splits, link=link, track=track)
    return {name: len(files) for name, files in splits.items()}, skipped


def _same_bytes(files: Sequence[list[AnnotatedImage]]) -> list[Group]:
    """Files grouped by their bytes, in the order of the names of the files."""
    groups: dict[bytes, Group] = {}
    for file in sorted(files, key=lambda file: file[0].file_name):
        with file[0].path.open("rb") as opened:
            digest = hashlib.file_digest(opened, "sha256").digest()
        groups.setdefault(digest, []).append(file)
    return list(groups.values())


def _balanced(groups: Sequence[Group], sizes: Mapping[str, int], seed: int) -> dict[str, Group]:
    """Iterative stratification (Sechidis et al., 2011): the rarest category is dealt out first.

    An image goes where the most of its rarest category is still missing.

    Args:
        sizes: The number of images of each part.
    """
    shuffled = [groups[place] for place in np.random.default_rng(seed).permutation(len(groups))]
    categories = [_categories(group) for group in shuffled]
    counts = Counter(name for names in categories for name in names)
    total = sum(sizes.values())
    wanted = {part: {n: counts[n] * size / total for n in counts} for part, size in sizes.items()}
    room = dict(sizes)
    parts: dict[str, list[int]] = {part: [] for part in sizes}

    def rarity(place: int) -> tuple[int, str]:
        return min((counts[name], name) for name in categories[place])

    for place in sorted(range(len(shuffled)), key=rarity):
        _, rarest = rarity(place)
        count = len(shuffled[place])
        fitting = [part for part in sizes if room[part] >= count] or list(sizes)
        part = max(fitting, key=lambda part: (wanted[part][rarest], room[part] / sizes[part]))
        parts[part].append(place)
        room[part] -= count
        for name in categories[place]:
            wanted[part][name] -= 1
    return {
        part: [file for place in sorted(places) for file in shuffled[place]]
        for part, places in parts.items()
    }


def _categories(group: Group) -> frozenset[str]:
    """What an image is of: the categories of its objects, or their phrases without one."""
    objects = [thing for file in group for record in file for thing in record.objects]
    return frozenset(thing.category or thing.sentences[0].lower() for thing in objects)
