"""Why peaks lie low on things: where image tokens know of a thing, layer by layer.

python -m recipes.reading_order                      # all backbones, their tiny models
python -m recipes.reading_order qwen --model FOLDER  # any model of a family

Each thing of unseen scenes is painted over with what is around it. The states of the image tokens
change where they know of it, and the center of this change, beside the center of the thing, says
how far knowledge has moved; no attention map and no trained head is looked at. Layer 0 is the input
of the language model. If the geometry were wrong, or the vision encoder moved things, the change
would be off there already. A language model reads image tokens in order, so that only the later
ones have seen a whole thing: then it moves in its layers, towards later rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation, center_of_mass
from torch import Tensor

from flmm_core.data.drawn.scenes import make_scene, paint
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.types import ImageView
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment

SEED = 7_153
RING = 4
"""Pixels around a thing whose mean color it is painted over with."""


@torch.no_grad()
def states(backbone: Backbone, pixels: NDArray[np.uint8]) -> tuple[ImageView, list[Tensor]]:
    """The last view of an image, and (S, D) the states before and after each layer."""
    sample = backbone.prepare(Image.fromarray(pixels), [Segment("a thing", 0)])
    tensors = backbone.collate([sample]).tensors
    found = backbone.vlm.model(**tensors, use_cache=False, output_hidden_states=True)
    return sample.views[-1], [layer[0] for layer in found.hidden_states]


def without(pixels: NDArray[np.uint8], masks: NDArray[np.bool_], thing: int) -> NDArray[np.uint8]:
    """An image with one of its things painted over."""
    around = binary_dilation(masks[thing], iterations=RING) & ~masks.any(0)
    erased = pixels.copy()
    erased[binary_dilation(masks[thing])] = pixels[around].mean(0)  # with its soft edge
    return erased


def change(view: ImageView, before: Tensor, after: Tensor) -> tuple[float, float]:
    """(y, x) the center of what changed, in fractions of the image."""
    moved = (after - before)[view.token_index].square().sum(-1).numpy()  # (h, w)
    y0, x0, y1, x1 = view.image_box
    row, column = center_of_mass(np.maximum(moved - np.median(moved), 0))
    h, w = moved.shape
    return y0 + (row + 0.5) / h * (y1 - y0), x0 + (column + 0.5) / w * (x1 - x0)


def offsets(backbone: Backbone, scenes: int) -> NDArray[np.float64]:
    """(things, layers + 1, 2) rows and columns of cells by which changes are off."""
    found = []
    for number in range(scenes):
        pixels, masks, _ = paint(make_scene((SEED, number), "plain"))
        view, whole = states(backbone, pixels)
        y0, x0, y1, x1 = view.image_box
        cells = np.array(view.token_index.shape) / (y1 - y0, x1 - x0)  # a whole image
        for thing, mask in enumerate(masks):
            _, erased = states(backbone, without(pixels, masks, thing))
            place = (np.array(center_of_mass(mask)) + 0.5) / mask.shape
            at = [change(view, *layers) for layers in zip(whole, erased, strict=True)]
            found.append((np.array(at) - place) * cells)
    return np.array(found)


def table(backbones: Sequence[Backbone], scenes: int) -> Iterator[str]:
    """The lines of a Markdown table."""
    layers = max(backbone.num_layers for backbone in backbones)
    yield f"| model | {' | '.join(f'layer {layer}' for layer in range(layers + 1))} |"
    yield f"|---|{'--:|' * (layers + 1)}"
    for backbone in backbones:
        down, right = np.median(offsets(backbone, scenes), axis=0).T
        shown = [f"{y:+.2f}, {x:+.2f}" for y, x in zip(down, right, strict=True)]
        yield f"| `{backbone.spec.name}` {backbone.model} | {' | '.join(shown)} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table: cells downwards, to the right; the median of all things."""
    parser = argparse.ArgumentParser(description="Measure where image tokens know of things.")
    parser.add_argument("backbones", nargs="*", help="default: all with a tiny model")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--scenes", type=int, default=40)
    given = parser.parse_args(arguments)
    known = load_backbones()
    specs = [known.get(name) for name in given.backbones or ["qwen", "deepseek_vl", "llava_next"]]
    loaded = [load_class(spec).load(spec, given.model) for spec in specs]
    print("\n".join(table(loaded, given.scenes)))


if __name__ == "__main__":
    main()
