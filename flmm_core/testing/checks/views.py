"""Where image tokens lie: in the sequence, and on the image."""

from __future__ import annotations

from flmm_core.errors import DataError
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.view_check import check_views
from flmm_core.testing.probes import CAPTION, LARGE_SHAPES, SHAPES, picture, repainted_cells
from flmm_core.testing.promise import BrokenPromiseError, require, require_equal


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
        except DataError as error:
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
