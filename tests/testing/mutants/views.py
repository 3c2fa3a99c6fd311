"""Faults of geometry."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from flmm_core import ImageView
from tests.testing.mutants.mutant import Make, method, mutant

MEASURED, COVERED, SPOT = (
    "check_measured_geometry",
    "check_views_cover_image_tokens",
    "check_repainted_spot",
)
PADDED = ("deepseek_vl", "minimal")


def views(change: Callable[[ImageView, tuple[int, int]], ImageView]) -> Make:
    def wrong(self: Any, right: Any, ids: Tensor, hw: tuple[int, int], tensors: Any) -> Any:
        return tuple(change(view, hw) for view in right(ids, hw, tensors))

    return method("views", wrong)


def cells(change: Callable[[Tensor], Tensor], over: int = 0) -> Make:
    """Cells in another order; in images with a side of more than `over` pixels."""
    return views(
        lambda v, hw: replace(v, token_index=change(v.token_index)) if max(hw) > over else v
    )


def moved(dy: float, dx: float = 0.0, grow: float = 0.0, over: int = 0) -> Make:
    """A box moved by (dy, dx) cells, and larger by `grow` cells at the lower right."""

    def change(view: ImageView, hw: tuple[int, int]) -> ImageView:
        (h, w), (y0, x0, y1, x1) = view.token_index.shape, view.image_box
        down, right = (y1 - y0) / h, (x1 - x0) / w
        box = (y0 + dy * down, x0 + dx * right, y1 + (dy + grow) * down, x1 + (dx + grow) * right)
        return replace(view, image_box=box) if max(hw) > over else view

    return views(change)


def box(change: Callable[[Any, tuple[int, int]], Any]) -> Make:
    return views(lambda v, hw: replace(v, image_box=change(v.image_box, hw)))


def serpentine(index: Tensor) -> Tensor:
    index = index.clone()
    index[1::2] = index[1::2].flip(1)
    return index


def two_swapped(index: Tensor) -> Tensor:
    index = index.clone()
    index[0, :2] = index[0, :2].flip(0)
    return index


def blocks(index: Tensor) -> Tensor:
    """Order of 2 x 2 blocks, as patches have it before they are merged."""
    h, w = (side // 2 * 2 for side in index.shape)
    order = index[:h, :w].flatten().view(h // 2, w // 2, 2, 2).transpose(1, 2).reshape(h, w)
    index = index.clone()
    index[:h, :w] = order
    return index


for name, change in {
    "transposed": lambda i: i.T.reshape(i.shape),
    "bottom row first": lambda i: i.flip(0),
    "right column first": lambda i: i.flip(1),
    "a column too far": lambda i: i.roll(1, 1),
    "a row too far": lambda i: i.roll(1, 0),
    "every other row backwards": serpentine,
    "two of them swapped": two_swapped,
    "in blocks of 2 x 2": blocks,
}.items():
    mutant(MEASURED, f"cells {name}")(cells(change))
mutant(MEASURED, "cells upside down above 512 px")(cells(lambda i: i.flip(0), over=512))
mutant(MEASURED, "cells upside down in tall images")(
    views(lambda v, hw: replace(v, token_index=v.token_index.flip(0)) if hw[0] > hw[1] else v)
)
mutant(MEASURED, "box 0.2 cells too low")(moved(0.2))
mutant(MEASURED, "box 0.2 cells too far right")(moved(0, 0.2))
mutant(MEASURED, "box 0.2 cells too large")(moved(0, 0, 0.2))
mutant(MEASURED, "box 0.1 cells too high")(moved(-0.1))
mutant(MEASURED, "box 0.2 cells too low above 512 px")(moved(0.2, over=512))
mutant(MEASURED, "box ignores padding or cropping", *PADDED)(box(lambda *_: (0.0, 0.0, 1.0, 1.0)))
mutant(MEASURED, "box cut off at the image", "deepseek_vl")(
    box(lambda b, _: tuple(min(1.0, max(0.0, x)) for x in b))
)
mutant(MEASURED, "box in the order x, y", *PADDED)(box(lambda b, _: (b[1], b[0], b[3], b[2])))
mutant(MEASURED, "box begins at the corner", *PADDED)(
    box(lambda b, _: (0.0, 0.0, b[2] - b[0], b[3] - b[1]))
)
mutant(MEASURED, "box in pixels")(
    box(lambda b, hw: tuple(x * n for x, n in zip(b, hw * 2, strict=True)))
)


@mutant(MEASURED, "a line end taken for a cell", "llava_next")
def line_ends(base: Any) -> Any:
    class Faulty(base):
        def views(self, *args: Any) -> Any:
            coarse, fine = super().views(*args)
            return coarse, replace(fine, token_index=fine.token_index + 1)

    return Faulty


@mutant(MEASURED, "boxes of the views swapped", "llava_next")
def swapped_boxes(base: Any) -> Any:
    class Faulty(base):
        def views(self, *args: Any) -> Any:
            coarse, fine = super().views(*args)
            boxes = fine.image_box, coarse.image_box
            return replace(coarse, image_box=boxes[0]), replace(fine, image_box=boxes[1])

    return Faulty


@mutant(MEASURED, "the views swapped", "llava_next")
def swapped_views(base: Any) -> Any:
    class Faulty(base):
        def views(self, *args: Any) -> Any:
            coarse, fine = super().views(*args)
            return replace(fine, name="coarse"), replace(coarse, name="fine")

        def separator_tokens(self, given: Any) -> int:
            return int(given[0].token_index.shape[0])

    return Faulty


mutant(SPOT, "grid half a cell too low")(moved(0.5))
mutant(SPOT, "grid half a cell too high")(moved(-0.5))
mutant(SPOT, "cells of the repainted spot mirrored")(cells(lambda i: i.flip(0, 1)))


def prepared(change: Callable[[Any], dict[str, Any]], over: int = 0) -> Make:
    """A fault of what `prepare` returns, for images with a side of more than `over` pixels."""

    def wrong(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        inputs = right(*args, **kwargs)
        return replace(inputs, **change(inputs)) if max(inputs.image_hw) > over else inputs

    return method("prepare", wrong)


def indices(change: Callable[[Tensor], Tensor]) -> Callable[[Any], dict[str, Any]]:
    return lambda inputs: {
        "views": tuple(replace(v, token_index=change(v.token_index)) for v in inputs.views)
    }


def doubled(index: Tensor) -> Tensor:
    index = index.clone()
    index[0, 0] = index[0, 1]
    return index


mutant(COVERED, "first row of cells missing")(prepared(indices(lambda i: i[1:])))
mutant(COVERED, "first row missing above 512 px")(prepared(indices(lambda i: i[1:]), over=512))
mutant(COVERED, "one token in two cells")(prepared(indices(doubled)))
mutant(COVERED, "cells one token early")(prepared(indices(lambda i: i - 1)))
mutant(COVERED, "image_hw is (width, height)")(
    prepared(lambda inputs: {"image_hw": inputs.image_hw[::-1]})
)
mutant(COVERED, "box is empty")(box(lambda b, _: (b[0], b[1], b[0], b[3])))
mutant(COVERED, "box beside the image")(box(lambda b, _: tuple(x + 2 for x in b)))
mutant(COVERED, "line ends not counted", "llava_next")(
    method("separator_tokens", lambda self, right, given: 0)
)
mutant(COVERED, "views in another order", "llava_next")(
    method("views", lambda self, right, *args: right(*args)[::-1])
)
mutant(COVERED, "only one of the views", "llava_next")(
    method("views", lambda self, right, *args: right(*args)[:1])
)
