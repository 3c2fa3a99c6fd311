"""What each image token encodes of the object under it: linear probes, layer by layer.

    python -m recipes.cells deepseek_vl
    python -m recipes.cells qwen --model build/qwen-matched

Layer 0 is the input of the language model. An attention map can tell two objects of one color apart
only if their cells encode the shape before the layer that attends to them; "the left ring" and "the
small ring" take the place and the size of the thing.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from flmm_core.data.drawn.scenes import COLORS, SHAPES, Scene, Shape, make_scene, paint
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_IMAGE
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment

SEED = 92
ENCODED = ("color", "shape", "size", "column", "row")
"""What is probed; column and row are thirds of the image, where the thing's center is."""


def label(scene: Scene, thing: Shape) -> list[int]:
    """The classes of a thing, as `ENCODED`."""
    thirds = (min(2, int(3 * at)) for at in (thing.x / scene.width, thing.y / scene.height))
    size = ("small", "large").index(thing.size)
    return [list(COLORS).index(thing.color), SHAPES.index(thing.name), size, *thirds]


@torch.no_grad()
def collect(backbone: Backbone, scenes: int) -> tuple[Tensor, Tensor, Tensor]:
    """(layers + 1, cells, D) states, (cells, 5) `ENCODED`, (cells,) scene; first view."""
    states, labels, origins = [], [], []
    for index in range(scenes):
        scene = make_scene((SEED, index), "plain")
        pixels, masks, _ = paint(scene)
        sample = backbone.prepare(Image.fromarray(pixels), [Segment("a thing", 0)])
        tensors = backbone.collate([sample]).tensors
        outputs = backbone.vlm.model(**tensors, use_cache=False, output_hidden_states=True)
        view = sample.views[0]
        truth = torch.from_numpy(masks).float()[None]
        size = (view.token_index.shape[0], view.token_index.shape[1])
        cover = resample(truth, WHOLE_IMAGE, view.image_box, size, outside="zero")[0].flatten(1)
        best, which = cover.max(0)
        inside = best > 0.5
        things = [scene.shapes[int(thing)] for thing in which[inside]]
        places = view.token_index.flatten()[inside]
        states.append(torch.stack([layer[0, places] for layer in outputs.hidden_states]))
        classes = [label(scene, thing) for thing in things]
        labels.append(torch.tensor(classes).reshape(-1, len(ENCODED)))
        origins.append(torch.full((len(things),), index))
    return torch.cat(states, 1), torch.cat(labels), torch.cat(origins)


def readable(states: Tensor, labels: Tensor, training: Tensor) -> float:
    """Accuracy of a linear probe for the labels (N,) of held-out cells (N, D)."""
    known = states[training]
    states = (states - known.mean(0)) / (known.std(0) + 1e-6)
    states = torch.cat([states, torch.ones(len(states), 1)], 1)
    weights = torch.zeros(states.shape[1], 6, requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60)

    def closure() -> Tensor:
        optimizer.zero_grad()
        fit = F.cross_entropy(states[training] @ weights, labels[training])
        loss = fit + 1e-3 * weights.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    right = (states[~training] @ weights).argmax(1) == labels[~training]
    return round(float(right.float().mean()), 3)


def probe(backbone: Backbone, scenes: int) -> list[dict[str, Any]]:
    """Accuracy by layer; two thirds of the scenes are for fitting."""
    states, labels, origins = collect(backbone, scenes)
    training = origins < scenes * 2 // 3
    return [
        {
            "layer": layer,
            **{
                name: readable(states[layer], labels[:, number], training)
                for number, name in enumerate(ENCODED)
            },
        }
        for layer in range(len(states))
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Probe what image tokens encode.")
    parser.add_argument("backbone")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--scenes", type=int, default=150)
    arguments = parser.parse_args()
    spec = load_backbones().get(arguments.backbone)
    loaded = load_class(spec).load(spec, arguments.model, dtype="float32")
    for row in probe(loaded, arguments.scenes):
        print(json.dumps(row))
