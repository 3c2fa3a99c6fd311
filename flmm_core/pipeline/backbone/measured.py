"""Views of images of any size under the same names, where their geometry is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import Any

from flmm_core.errors import DataError, WeightsError
from flmm_core.pipeline.backbone.geometry.measured_views import (
    GeometryRefused,
    Measured,
    MeasuredGeometry,
)
from flmm_core.pipeline.backbone.identity import Geometry
from flmm_core.pipeline.types import Box, ImageView

WHOLE = 0.3
"""Pixels of the resized image by which a measured edge may miss a whole number of them."""
EDGE = 0.03
"""Cells within which a measured edge is taken for that of the image."""
SIZES = ((480, 640), (640, 427), (96, 96), (1080, 1920), (400, 160), (120, 600))
"""(H, W) that are measured when a model is loaded: photos, small, large, and up to 5:1."""
NEEDED = SIZES[:2]
"""A model of which one of these cannot be measured is refused; of others, images are."""


class MeasuredViews:
    """The measured geometry of a model, with views that are the same for every image.

    `refused` says why images of some sizes cannot be measured, once `probed` is known.

    Models that cut images into tiles show some images, mostly small ones, only as a whole. The one
    view then stands for all: see `Requirements.optional_views`.
    """

    def __init__(self, config: Any, processor: Any) -> None:
        self._geometry = MeasuredGeometry(config, processor)
        self._kind = getattr(config, "model_type", type(config).__name__)
        patch = getattr(getattr(config, "vision_config", None), "patch_size", None)
        self._patch = patch if isinstance(patch, int) else None
        self.refused: dict[tuple[int, int], str] = {}

    @cached_property
    def probed(self) -> Mapping[tuple[int, int], Measured]:
        """By image size, what was measured; without those in `refused`.

        Raises:
            WeightsError: A size cannot be measured, or no two views are the same for all of them.
        """
        found: dict[tuple[int, int], Measured] = {}
        for image_hw in SIZES:
            try:
                found[image_hw] = self._measured(image_hw)
            except (GeometryRefused, DataError) as error:
                if image_hw in NEEDED:
                    asked, repair = error.asked, error.repair
                    raise WeightsError(asked, found=error.found, repair=repair) from error
                self.refused[image_hw] = error.found or error.asked
        counts = {len(one.views) for one in found.values()}
        if not counts or len(counts - {1}) > 1:
            shown = ", ".join(f"{w} x {h}: {len(one.views)}" for (h, w), one in found.items())
            raise WeightsError(
                f"The views of '{self._kind}' are not the same for every image.",
                found=f"Views by image size: {shown or 'none'}.",
                repair="Declare the geometry in a plugin's `views`.",
            )
        return found

    def names(self) -> tuple[str, ...]:
        """The names of the views; raises as `probed`."""
        return max((one.view_names for one in self.probed.values()), key=len)

    def at(self, image_hw: tuple[int, int], names: tuple[str, ...]) -> Measured:
        """What was measured for images of a size, its views under the first of these names.

        Raises:
            DataError: It cannot be measured, or there are other views than in images of `SIZES`.
        """
        try:
            found = self._measured(image_hw)
        except GeometryRefused as error:
            raise DataError(error.asked, found=error.found, repair=error.repair) from error
        views = list(found.views)
        if len(views) not in (1, len(names)):
            raise DataError(
                "the image has other views than the model's images have.",
                found=f"{len(views)} for {image_hw[1]} x {image_hw[0]} pixels; "
                f"expected {len(names)} ({', '.join(names)}).",
                repair="Resize it.",
            )
        views[0] = replace(views[0], separators=found.separators)
        named = tuple(replace(v, name=n) for v, n in zip(views, names, strict=False))
        return replace(found, views=named)

    def _measured(self, image_hw: tuple[int, int]) -> Measured:
        found = self._geometry.at(image_hw)
        views = (replace(v, image_box=whole_pixels(v, self._patch)) for v in found.views)
        return replace(found, views=tuple(views))

    def facts(self) -> Geometry:
        """By image size ("640 x 480"), each view's rows, columns and box: for `ModelIdentity`."""
        return {
            f"{w} x {h}": {
                view.name: (
                    *map(float, view.token_index.shape),
                    *(round(x, 4) for x in view.image_box),
                )
                for view in one.views
            }
            for (h, w), one in self.probed.items()
        }


def whole_pixels(view: ImageView, patch: int | None) -> Box:
    """The box of a measured view without the error of the measurement, where that can be known.

    Processors resize images to whole pixels, and pad and cut them by whole pixels. So an edge at
    the image's own lies there; and where a cell is one patch, the box has a whole number of pixels.
    """
    y0, x0, y1, x1 = view.image_box
    h, w = view.token_index.shape
    (y0, y1), (x0, x1) = _whole(y0, y1, h, patch), _whole(x0, x1, w, patch)
    return y0, x0, y1, x1


def _whole(start: float, end: float, cells: int, patch: int | None) -> tuple[float, float]:
    cell = (end - start) / cells
    if max(abs(start), abs(end - 1)) < EDGE * cell:
        return 0.0, 1.0
    if patch is None:
        return start, end
    side = patch / cell  # of the resized image, in pixels
    first, whole = start * side, round(side)
    if not whole or max(abs(side - whole), abs(first - round(first))) > WHOLE:
        return start, end
    return round(first) / whole, (round(first) + cells * patch) / whole
