"""The default splits of drawn scenes, kept in a cache folder: the source `shapes`.

They are written as RefCOCO files once, narrations as PNG files, and read like the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flmm_core.data.drawn.scenes import HARD_KINDS, VERSION
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.findings import Findings
from flmm_core.data.formats import FORMATS, Source
from flmm_core.data.sample import AnnotatedImage
from flmm_core.errors import UsageError, did_you_mean
from flmm_core.files import cache_folder, whole_folder


@dataclass(frozen=True)
class Split:
    """The arguments of `draw_images` for a default split; no two splits share a seed.

    `format` is that of its files.
    """

    count: int
    seed: int
    kinds: tuple[str, ...]
    sentences: int = 1
    extras: tuple[str, ...] = ()
    format: str = "refcoco"


SPLITS = {
    "train": Split(
        1040, 71, ("plain", "plain", "plain", "plain", "plain", *HARD_KINDS), 2, ("some absent",)
    ),
    "val": Split(100, 72, ("plain",), 1, ("half absent",)),
    "test": Split(300, 73, ("plain",)),
    "hard": Split(250, 74, HARD_KINDS),
    "absent": Split(150, 75, ("plain",), 1, ("half absent",)),
    "narrated": Split(1000, 76, ("plain",), 1, ("narration",), "png"),
    "narrated-val": Split(100, 78, ("plain",), 1, ("narration",), "png"),
    "narrated-test": Split(200, 77, ("plain",), 1, ("narration",), "png"),
}


def split_folder(split: str) -> Path:
    """Where a default split is, or will be."""
    return cache_folder() / f"shapes-{VERSION}-{split}-{SPLITS[split].count}"


def ensure_shapes(split: str) -> Path:
    """The folder of a default split, drawn on first use; UsageError for any other."""
    if split not in SPLITS:
        raise UsageError(
            f"Unknown split '{split}' of 'shapes'. {did_you_mean(split, SPLITS)}".rstrip(),
            found=f"Known: {', '.join(SPLITS)}.",
        )
    plan = SPLITS[split]
    folder = split_folder(split)
    if folder.is_dir():
        return folder
    drawn = {name: value for name, value in vars(plan).items() if name != "format"}
    with whole_folder(folder) as aside:
        FORMATS[plan.format].write(aside, draw_images(**drawn, split=split))
    return folder


def read(source: Source, findings: Findings) -> Sequence[AnnotatedImage]:
    folder = ensure_shapes(source.split)
    written = FORMATS[SPLITS[source.split].format]
    return written.read(Source(written.name, folder, source.split), findings)
