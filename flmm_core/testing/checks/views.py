"""Where image tokens lie: in the sequence, and on the image."""

from __future__ import annotations

import torch

from flmm_core.errors import FlmmError
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.geometry.measured_views import GeometryRefused, MeasuredGeometry
from flmm_core.pipeline.backbone.view_check import check_views
from flmm_core.pipeline.types import ImageView
from flmm_core.testing.probes import (
    CAPTION,
    LARGE_SHAPES,
    MEASURED_SHAPES,
    SHAPES,
    picture,
    prepared,
    repainted_cells,
)
from flmm_core.testing.promise import BrokenPromiseError, NotPromised, require, require_equal
from flmm_core.testing.reference import reference

MOST_CELLS = 0.05
"""How far a declared box may lie from the measured one."""


def check_views_cover_image_tokens(backbone: Backbone) -> None:
    """Cells and separators together are all image tokens, each once, for any image shape."""
    for height, width in (*SHAPES, *LARGE_SHAPES):
        where = f"image of {width} x {height}"
        try:
            inputs = backbone.prepare(picture(height, width), CAPTION)
            require_equal(
                tuple(v.name for v in inputs.views), backbone.view_names, f"views, {where}"
            )
            require_equal(inputs.image_hw, (height, width), f"image_hw, {where}")
            separators = backbone.separator_tokens(inputs.views)
            is_image = backbone.vision_token_mask(inputs)
            check_views(inputs.views, is_image, separators, (height, width))
        except FlmmError as error:
            said = f"{error.asked} {error.found}"
            what = f"cells, {where}"
            raise BrokenPromiseError(what, "every image token once", said) from error
        for view in inputs.views:
            y0, x0, y1, x1 = view.image_box
            require(
                y0 < y1 and x0 < x1 and min(y1, x1) > 0 and max(y0, x0) < 1,
                f"box of view {view.name}, {where}",
                expected="(y0, x0, y1, x1) that shows some of the image",
                found=view.image_box,
            )


def check_measured_geometry(backbone: Backbone) -> None:
    """Each cell's token, and each view's box up to 0.05 cells, are those that are measured.

    They are measured with the processor and the configuration in the model's folder; the weights
    play no part. A backbone that declares nothing has nothing to compare.
    """
    if backbone.measured is not None:
        raise NotPromised(
            "no geometry is declared, and the measured one was compared with nothing; "
            "check_repainted_spot compares it with what the weights do"
        )
    stored = reference(backbone)
    geometry = MeasuredGeometry(stored.vlm.config, stored.processor)
    refused = ""
    for height, width in MEASURED_SHAPES:
        where = f"image of {width} x {height}"
        try:
            measured = geometry.at((height, width))
        except GeometryRefused as error:
            refused = f"it cannot be measured: {error.found}"
            continue
        inputs = prepared(backbone, picture(height, width), where)
        places = backbone.vision_token_mask(inputs).nonzero().flatten()  # (M,)
        require_equal(len(places), measured.image_tokens, f"number of image tokens, {where}")
        views = inputs.views[: len(measured.views)]
        spare = inputs.views[len(views) :]
        optional = {view.name for view in spare} <= backbone.requirements.optional_views
        if len(views) < len(measured.views) or not optional:
            names = tuple(view.name for view in inputs.views)
            require_equal(names, measured.view_names, f"views, {where}")
        for declared, found in zip(views, measured.views, strict=True):
            _require_same_cells(declared, found, places, where)
    if refused:
        raise NotPromised(refused)


def _require_same_cells(
    declared: ImageView, measured: ImageView, places: torch.Tensor, where: str
) -> None:
    expected = places[measured.token_index]  # (h, w)
    h, w = expected.shape
    what = f"view {declared.name}, {where}"
    require_equal(tuple(declared.token_index.shape), tuple(expected.shape), f"cells of {what}")
    wrong = (declared.token_index != expected).nonzero().tolist()
    if wrong:
        row, column = wrong[0]
        require_equal(
            int(declared.token_index[row, column]),
            int(expected[row, column]),
            f"token of cell ({row}, {column}) of {what} ({len(wrong)} of {h * w} differ)",
        )
    y0, x0, y1, x1 = measured.image_box
    cells = torch.tensor([h / (y1 - y0), w / (x1 - x0)] * 2)
    off = (torch.tensor(declared.image_box) - torch.tensor(measured.image_box)).abs() * cells
    require(
        float(off.max()) <= MOST_CELLS,
        f"box (y0, x0, y1, x1) of {what}",
        expected=f"({', '.join(f'{x:.4f}' for x in measured.image_box)})",
        found=f"({', '.join(f'{x:.4f}' for x in declared.image_box)}), up to "
        f"{float(off.max()):.2f} cells off",
    )


def check_repainted_spot(backbone: Backbone) -> None:
    """When a spot of the image is repainted, the token of the cell there changes most.

    This verifies rows, columns, order and box of every view. Three of four spots must match:
    with a trained vision tower another cell may respond now and then.
    """
    for height, width in ((240, 360), (400, 160), (230, 233)):
        image = picture(height, width)
        for number, name in enumerate(backbone.view_names):
            what = f"view {name}, image of {width} x {height}"
            pairs = repainted_cells(backbone, image, number, seed=height)
            require(pairs, what, expected="cells within the image", found="none")
            wrong = [(painted, changed) for painted, changed in pairs if painted != changed]
            require(
                len(wrong) <= len(pairs) // 4,
                what,
                expected="the repainted cell to change most",
                found=f"another for {len(wrong)} of {len(pairs)} spots; (repainted, changed): "
                f"{wrong}",
            )
