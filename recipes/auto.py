"""Tries `--backbone auto` on families at toy width: loads them, grounds an image, repaints spots.

    python -m recipes.auto                              # all of recipes.families, some minutes
    python -m recipes.auto --families glm4v aya_vision

A family's folder has its published config at toy width, its published processor and random weights.
Loading measures and proves the geometry, and repaints parts of images; a head with fresh weights
grounds two phrases; then spots of one cell each are repainted, and the token that changes most is
looked up in its view. Prints a Markdown table and why families are refused; exit code 1 if more
than a quarter of the spots are elsewhere, or a family that must be refused is not.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import transformers as hf

from flmm_core.errors import FlmmError
from flmm_core.pipeline.build import Recipe, build_flow
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import HeadInfo
from flmm_core.testing.probes import CAPTION, picture, repainted_cells
from recipes.families import FAMILIES, REFUSED, write_folder

IMAGE_HW = (480, 640)
SPOTS_HW = (240, 360)
PHRASES = ("a cat", "the red ball")


class Row(NamedTuple):
    """What a family gave.

    Attributes:
        refused: Why it was refused; the rest is empty then.
        views: Names and grids, in an image of `IMAGE_HW`.
        spots: In how many the right cell changed most, and how many were repainted.
    """

    seconds: float
    refused: str = ""
    views: str = ""
    masks: int = 0
    spots: tuple[int, int] = (0, 0)


def try_folder(folder: Path) -> Row:
    """Load a model's folder, ground an image with it and repaint spots."""
    began = time.process_time()
    options = {"allow_unlisted": True}
    recipe = Recipe("auto", str(folder), options=options, base_channels=16, refiner="none")
    try:
        observer, head = build_flow(recipe, device="cpu")
    except FlmmError as error:
        return Row(time.process_time() - began, f"{error.asked} {error.found}".replace("\n", " "))
    grounder = Grounder(observer, head, HeadInfo(recipe, observer.vlm))
    found = grounder.ground(picture(*IMAGE_HW), PHRASES)
    backbone = observer.backbone
    pairs = [
        pair
        for number in range(len(backbone.view_names))
        for pair in repainted_cells(backbone, picture(*SPOTS_HW), number)
    ]
    right = sum(painted == changed for painted, changed in pairs)
    views = backbone.prepare(picture(*IMAGE_HW), CAPTION).views
    grids = (f"{one.name} {' x '.join(map(str, one.token_index.shape))}" for one in views)
    return Row(time.process_time() - began, "", ", ".join(grids), len(found), (right, len(pairs)))


def table(names: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """The row of each family, measured anew: nothing is read from the user's cache."""
    for name in names:
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["FLMM_CACHE"] = f"{temporary}/cache"
            yield name, try_folder(write_folder(name, Path(temporary, "toy")))


def line(name: str, row: Row) -> str:
    """One line of the table."""
    cells = ["refused", "", "", ""]
    if not row.refused:
        cells = ["loaded", row.views, str(row.masks), "{} of {}".format(*row.spots)]
    return f"| `{name}` | {' | '.join(cells)} | {row.seconds:.0f} |"


def is_wrong(name: str, row: Row) -> bool:
    """Whether a family does otherwise than it must."""
    right, spots = row.spots
    missing = not row.refused and (spots - right > spots // 4 or row.masks != len(PHRASES))
    return missing or (name in REFUSED and not row.refused)


HEAD = (
    "| family | `auto` | views of 640 x 480 | masks | spots found | CPU s |\n"
    "|---|---|---|---|---|---|"
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; returns the exit code."""
    parser = argparse.ArgumentParser(description="Try auto on families at toy width.")
    parser.add_argument("--families", nargs="+", choices=sorted(FAMILIES | REFUSED))
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    hf.utils.logging.disable_progress_bar()
    rows = []
    print(HEAD, flush=True)
    for name, row in table(given.families or [*FAMILIES, *REFUSED]):
        print(line(name, row), flush=True)
        rows.append((name, row))
    print(
        "\nRefused:", *(f"{name}: {row.refused}" for name, row in rows if row.refused), sep="\n  "
    )
    return int(any(is_wrong(name, row) for name, row in rows))


if __name__ == "__main__":
    sys.exit(main())
