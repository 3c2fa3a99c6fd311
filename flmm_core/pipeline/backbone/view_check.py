"""Do the image tokens of a sequence fit the grids that a plugin read into them?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from flmm_core.errors import DataError, FlmmError
from flmm_core.pipeline.types import ImageView

REPAIR = "Use the processor that belongs to these weights."


def find_image_tokens(is_image: Tensor, expected: int) -> Tensor:
    """(expected,) int64 places of the image tokens in a sequence.

    Args:
        is_image: (S,) bool.
        expected: How many there must be.

    Raises:
        DataError: Their number is another one.
    """
    places = is_image.nonzero().flatten()
    if len(places) != expected:
        raise DataError(
            "the image tokens do not fit the grid of the image.",
            found=f"The sequence holds {len(places)} image tokens; {expected} were expected.",
            repair=REPAIR,
        )
    return places


def check_views(
    views: Sequence[ImageView], is_image: Tensor, separators: int, image_hw: tuple[int, int]
) -> None:
    """See that each cell has an image token of its own, and that only separators are left over.

    Args:
        views: What the plugin read.
        is_image: (S,) bool.
        separators: Image tokens that belong to no cell.
        image_hw: Height and width of the image in pixels, for the message.

    Raises:
        DataError: They do not fit.
    """
    cells = torch.cat([view.token_index.flatten() for view in views])  # (M,)
    tokens = int(is_image.sum())
    fits = (
        len(cells) + separators == tokens
        and bool(((cells >= 0) & (cells < len(is_image))).all())
        and bool(is_image[cells].all())
        and len(cells.unique()) == len(cells)
    )
    if not fits:
        grids = ", ".join(f"{v.name} {'x'.join(map(str, v.token_index.shape))}" for v in views)
        raise DataError(
            "the image tokens do not fit the grid of the image.",
            found=f"The sequence holds {tokens} image tokens; the grid ({grids}, "
            f"{separators} separators) has places for {len(cells) + separators}, "
            f"for an image of {image_hw[1]} x {image_hw[0]} pixels.",
            repair=REPAIR,
        )


@contextmanager
def naming_sample(name: str) -> Iterator[None]:
    """Put the sample's name before an error that was raised without it."""
    try:
        yield
    except FlmmError as error:
        asked = f"Sample '{name}': {error.asked}"
        raise type(error)(asked, found=error.found, repair=error.repair) from error
