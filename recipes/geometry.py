"""Measures where image tokens lie, for families x image sizes, and compares with what is declared.

    python -m recipes.geometry                          # all families x 12 sizes, some minutes
    python -m recipes.geometry --families llava_next --sizes 640x480 1920x1080

Each family is written as a folder (config at its published size, processor, no weights) and read
from there. Where an installed backbone declares the family's geometry, a toy-width folder with
random weights is loaded through it, and its views are compared: token by token, boxes in cells.
Prints a Markdown table; exit code 1 if anything differs, or a family that must be refused is not.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers as hf
from PIL import Image

from flmm_core.errors import DataError
from flmm_core.pipeline.backbone.geometry.measured_views import (
    GeometryRefused,
    MeasuredGeometry,
)
from flmm_core.pipeline.types import ImageView
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment
from recipes.families import FAMILIES, REFUSED, write_folder

SIZES = (
    "60x60", "100x100", "224x224", "333x500", "500x333", "640x480", "480x640", "500x100",
    "200x1000", "800x600", "1280x720", "1920x1080",
)  # fmt: skip
CAPTION = (Segment("a cat", 0),)
LEAST_BOX = 0.05
"""How far declared and measured boxes may lie apart, in cells."""


class Row(NamedTuple):
    """What one image size gave: `box` in cells, None where nothing can be compared."""

    seconds: float
    refused: str = ""
    residual: float = 0.0
    same: bool = True
    box: float | None = None


def parts_from_folder(name: str, folder: Path) -> tuple[Any, Any]:
    """(config, processor) of a family, written and read as a published folder is."""
    config, processor = (FAMILIES | REFUSED)[name]()
    config.save_pretrained(folder)
    processor.save_pretrained(folder)
    read = hf.AutoProcessor.from_pretrained(folder)
    read.image_processor = hf.AutoImageProcessor.from_pretrained(folder, backend="pil")
    return hf.AutoConfig.from_pretrained(folder), read


def declaring_backbone(name: str, folder: Path) -> Any:
    """A loaded backbone that declares the family's geometry; None if no installed one does."""
    kind = (FAMILIES | REFUSED)[name]().config.model_type
    registry = load_backbones()
    for each in registry.specs:
        spec = registry.get(each)
        backbone_class = load_class(spec)
        if kind in backbone_class.model_types:
            return backbone_class.load(spec, str(write_folder(name, folder)))
    return None


def declared_views(backbone: Any, image_hw: tuple[int, int]) -> tuple[ImageView, ...]:
    """Its views, with the image tokens counted from 0."""
    inputs = backbone.prepare(Image.new("RGB", image_hw[::-1]), CAPTION)
    is_image = inputs.tokens["input_ids"] == backbone.image_token_id  # (S,)
    rank = is_image.long().cumsum(0) - 1
    return tuple(
        ImageView(view.name, rank[view.token_index], view.image_box) for view in inputs.views
    )


def box_error(one: ImageView, other: ImageView) -> float:
    """The largest distance of the sides of two boxes, in cells."""
    h, w = other.token_index.shape
    y0, x0, y1, x1 = other.image_box
    cells = ((y1 - y0) / h, (x1 - x0) / w) * 2
    sides = zip(one.image_box, other.image_box, cells, strict=True)
    return max(abs(a - b) / cell for a, b, cell in sides)


def compare(found: Sequence[ImageView], declared: Sequence[ImageView]) -> tuple[bool, float]:
    """Whether all tokens are the same, and the largest error of a box."""
    pairs = list(zip(found, declared, strict=True))
    same = all(torch.equal(one.token_index, other.token_index) for one, other in pairs)
    return same, max(box_error(one, other) for one, other in pairs) if same else torch.inf


def measure(geometry: MeasuredGeometry, backbone: Any, size: str) -> Row:
    """One size, "WIDTHxHEIGHT"."""
    width, height = map(int, size.split("x"))
    began = time.process_time()
    try:
        found = geometry.at((height, width))
    except DataError as error:
        kind = "" if isinstance(error, GeometryRefused) else "processor: "
        return Row(time.process_time() - began, kind + error.found)
    seconds = time.process_time() - began
    declared = declared_views(backbone, (height, width)) if backbone else ()
    if len(declared) != len(found.views):  # tiles that make no regular grid are views of their own
        return Row(seconds, residual=found.residual)
    same, box = compare(found.views, declared)
    return Row(seconds, residual=found.residual, same=same, box=box)


def table(names: Sequence[str], sizes: Sequence[str]) -> Iterator[tuple[str, list[Row]]]:
    """The rows of each family, measured anew: nothing is read from the user's cache."""
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["FLMM_CACHE"] = f"{temporary}/cache"
            config, processor = parts_from_folder(name, Path(temporary, "published"))
            backbone = None
            if name in FAMILIES:
                backbone = declaring_backbone(name, Path(temporary, "toy"))
            geometry = MeasuredGeometry(config, processor)
            yield name, [measure(geometry, backbone, size) for size in sizes]


def line(name: str, rows: Sequence[Row]) -> str:
    """One line of the table."""
    proved = [row for row in rows if not row.refused]
    compared = [row for row in proved if row.box is not None]
    seconds = [row.seconds for row in rows[1:] or rows]
    cells = [
        name,
        f"{len(proved)} of {len(rows)}",
        f"{max(row.residual for row in proved):.3f}" if proved else "",
        f"{sum(row.same for row in compared)} of {len(compared)}" if compared else "",
        f"{max(row.box or 0.0 for row in compared):.3f}" if compared else "",
        f"{rows[0].seconds:.2f}",
        f"{statistics.median(seconds):.2f}",
        f"{max(seconds):.2f}",
    ]
    return f"| {' | '.join(cells)} |"


HEAD = (
    "| family | proved | residual (cells) | equal to declared | box (cells) | first (CPU s) "
    "| median | longest |\n|---|---|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="Measure where image tokens lie.")
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES | REFUSED))
    parser.add_argument("--sizes", nargs="+", default=SIZES, metavar="WIDTHxHEIGHT")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    hf.utils.logging.disable_progress_bar()
    names = given.families or [*FAMILIES, *REFUSED]
    wrong = False
    reasons = []
    print(HEAD)
    for name, rows in table(names, given.sizes):
        print(line(name, rows), flush=True)
        proved = [row for row in rows if not row.refused]
        wrong |= any(not row.same or (row.box or 0.0) > LEAST_BOX for row in proved)
        wrong |= name in REFUSED and bool(proved)
        refused = dict.fromkeys(row.refused for row in rows if row.refused)
        reasons += [f"{name}: {reason}" for reason in refused]
    print("\nRefused:", *reasons, sep="\n  ")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
