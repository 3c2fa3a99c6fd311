"""Checks that the image tokens of a sequence fit the grids that a plugin declares."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flmm_core.errors import DataError, FlmmError
from flmm_core.pipeline.types import ImageView

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone


def checked_views(
    backbone: Backbone,
    input_ids: Tensor,
    is_image: Tensor,
    image_hw: tuple[int, int],
    tensors: Mapping[str, Tensor],
    name: str,
) -> tuple[ImageView, ...]:
    """`Backbone.views`, checked; (S,) `is_image` says which tokens are the image's.

    Raises:
        DataError: The image tokens do not fit; it names the sample.
    """
    with naming_sample(name):
        views = backbone.views(input_ids, image_hw, tensors)
        if tuple(view.name for view in views) != backbone.view_names:
            kind = type(backbone).__name__
            raise ValueError(f"{kind} must give the views {backbone.view_names}")
        check_views(views, is_image, backbone.separator_tokens(views), image_hw)
    return views


def check_views(
    views: Sequence[ImageView], is_image: Tensor, separators: int, image_hw: tuple[int, int]
) -> None:
    """`DataError` unless each cell has an image token of its own and only separators are left.

    Args:
        views: What the plugin declares.
        is_image: (S,) bool.
        separators: How many image tokens belong to no cell.
        image_hw: Of the image in pixels, for the message.
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
        raise misfit(
            f"The sequence holds {tokens} image tokens; the grid ({grids}, "
            f"{separators} separators) needs {len(cells) + separators}, "
            f"for an image of {image_hw[1]} x {image_hw[0]} pixels."
        )


def misfit(found: str) -> DataError:
    return DataError(
        "the image tokens do not fit the grid of the image.",
        found=found,
        repair="Use the processor that belongs to these weights.",
    )


@contextmanager
def naming_sample(name: str) -> Iterator[None]:
    """Prefix errors with the sample's name, for code that does not know it."""
    try:
        yield
    except FlmmError as error:
        asked = f"Sample '{name}': {error.asked}"
        raise type(error)(asked, found=error.found, repair=error.repair) from error
