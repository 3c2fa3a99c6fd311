"""Checks that the image tokens of a sequence fit the grids that a plugin declares."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flmm_core.errors import DataError, FlmmError, RunError, machine_error
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
    """`Backbone.views`, checked and complete; (S,) `is_image` says which tokens are the image's.

    Raises:
        DataError: The image tokens do not fit; it names the sample.
        RunError: The plugin fails, or gives other views than it declares.
    """
    with naming_sample(name):
        with blaming(backbone.views):
            given = backbone.views(input_ids, image_hw, tensors)
            names, optional = backbone.view_names, backbone.requirements.optional_views
            views = _completed(given, names, optional)
        with blaming(backbone.separator_tokens):
            separators = backbone.separator_tokens(views)
        check_views(views, is_image, separators, image_hw, backbone.spec.target)
    return views


def _completed(
    given: Sequence[ImageView], names: Sequence[str], optional: Collection[str]
) -> tuple[ImageView, ...]:
    """One view for each name: the first stands for those that the image is without.

    So the number of channels is the same for every image, and what a head reads there is what the
    model attended to at the image, as far as there is such a view.
    """
    known = {view.name: view for view in given}
    missing = set(names) - set(known)
    if [view.name for view in given] != [n for n in names if n in known] or missing - {*optional}:
        found = tuple(view.name for view in given)
        raise ValueError(f"the views are {found}; expected {tuple(names)}")
    if not given:
        raise ValueError("it gives no view")
    return tuple(known.get(n) or replace(given[0], name=n, separators=0) for n in names)


def check_views(
    views: Sequence[ImageView],
    is_image: Tensor,
    separators: int,
    image_hw: tuple[int, int],
    target: str = "",
) -> None:
    """`DataError` unless each cell has an image token of its own and only separators are left.

    Args:
        views: What the plugin declares; one that repeats another counts once.
        is_image: (S,) bool.
        separators: How many image tokens belong to no cell.
        image_hw: Of the image in pixels, for the message.
        target: Whose views they are, for the message.
    """
    once = [v for n, v in enumerate(views) if not any(_same(v, other) for other in views[:n])]
    cells = torch.cat([view.token_index.flatten() for view in once])  # (M,)
    tokens = int(is_image.sum())
    fits = (
        len(cells) + separators == tokens
        and bool(((cells >= 0) & (cells < len(is_image))).all())
        and bool(is_image[cells].all())
        and len(cells.unique()) == len(cells)
    )
    if not fits:
        grids = ", ".join(f"{v.name} {'x'.join(map(str, v.token_index.shape))}" for v in once)
        raise misfit(
            f"The sequence holds {tokens} image tokens; the grid ({grids}, "
            f"{separators} separators) needs {len(cells) + separators}, "
            f"for an image of {image_hw[1]} x {image_hw[0]} pixels.",
            target,
        )


def _same(one: ImageView, other: ImageView) -> bool:
    return one.image_box == other.image_box and torch.equal(one.token_index, other.token_index)


def misfit(found: str, target: str = "") -> DataError:
    either = f"; if it does, the geometry of the plugin ({target}) is wrong" if target else ""
    return DataError(
        "the image tokens do not fit the grid of the image.",
        found=found,
        repair=f"Use the processor that belongs to these weights{either}.",
    )


@contextmanager
def blaming(method: Callable[..., object]) -> Iterator[None]:
    """Turn what a plugin's own method raises into an error that names it: no image is at fault."""
    try:
        yield
    except FlmmError:
        raise
    except Exception as error:  # a plugin can raise anything
        if (known := machine_error(error)) is not None:
            raise known from error
        name = f"{method.__module__}:{getattr(method, '__qualname__', method)}"
        raise RunError(
            f"The plugin's own code fails: {name}.",
            found=f"{type(error).__name__}: {' '.join(str(error).split())}",
            repair="Report it to the plugin's author, or use another version of it. "
            "FLMM_DEBUG=1 shows where it fails.",
        ) from error


@contextmanager
def naming_sample(name: str) -> Iterator[None]:
    """Prefix errors with the sample's name, for code that does not know it."""
    try:
        yield
    except FlmmError as error:
        if not name:
            raise
        asked = f"Sample '{name}': {error.asked}"
        raise type(error)(asked, found=error.found, repair=error.repair) from error
