"""What a tiny model knows: does it name what is there, and do its heads attend to what is named?

python -m recipes.measure qwen
python -m recipes.measure qwen --model build/random      # the control
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.data.drawn.narrations import narration
from flmm_core.data.drawn.scenes import COLORS, SHAPES, make_scene, paint
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_IMAGE
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment

SEED = 90
NAMED = re.compile(rf"({'|'.join(COLORS)}) ({'|'.join(SHAPES)})")


def captions(backbone: Backbone, scenes: int) -> dict[str, Any]:
    """Greedy captions of unseen plain scenes: how many of the named objects are there."""
    named = right = there = 0
    example = ""
    for index in range(scenes):
        scene = make_scene((SEED, index), "plain")
        answer = backbone.generate(Image.fromarray(paint(scene)[0]), max_new_tokens=80)
        said = [match.groups() for match in NAMED.finditer(answer)]
        kinds = {shape.kind for shape in scene.shapes}
        named += len(said)
        right += sum(kind in kinds for kind in said)
        there += len(kinds & set(said))
        example = example or answer
    objects = sum(len(make_scene((SEED, i), "plain").shapes) for i in range(scenes))
    return {
        "scenes": scenes,
        "objects_named": named,
        "named_and_there": round(right / max(1, named), 4),
        "there_and_named": round(there / objects, 4),
        "example": example,
    }


def focus(backbone: Backbone, scenes: int) -> dict[str, Any]:
    """Fraction of each head's attention on the object, for phrases in a narration."""
    import numpy as np

    mass: list[Tensor] = []
    area: list[float] = []
    for index in range(scenes):
        scene = make_scene((SEED + 1, index), "plain")
        pixels, masks, _ = paint(scene)
        pieces = narration(scene, np.random.default_rng((SEED, index)))
        inputs = backbone.prepare(Image.fromarray(pixels), pieces)
        (trace,) = backbone.trace(backbone.collate([inputs]))
        maps = attention_maps(trace)
        size = (scene.height, scene.width)
        on_image = resample(maps.maps, maps.image_box, WHOLE_IMAGE, size)
        on_image = on_image / on_image.sum((2, 3), keepdim=True).clamp(min=1e-12)
        truth = torch.from_numpy(masks).float()
        mass += list(torch.einsum("pchw,phw->pc", on_image, truth))
        area += truth.mean((1, 2)).tolist()
    shares, mean_area = torch.stack(mass).mean(0), sum(area) / len(area)
    return {
        "phrases": len(area),
        "object_area": round(mean_area, 4),
        "best_head_mass": round(float(shares.max()), 4),
        "best_head_over_area": round(float(shares.max()) / mean_area, 2),
        "best_head": int(shares.argmax()),
    }


def told_apart(backbone: Backbone, scenes: int) -> dict[str, Any]:
    """Where objects share a color: how often a head attends more densely to the one that is named.

    Of the attention of the last word of "the red ring", for the head that is right most often.
    """
    right: list[Tensor] = []
    for index in range(scenes):
        scene = make_scene((SEED + 2, index), "plain", shared=0.75)
        pixels, masks, _ = paint(scene)
        image, truth = Image.fromarray(pixels), torch.from_numpy(masks).float()
        for number, thing in enumerate(scene.shapes):
            others = [
                place
                for place, other in enumerate(scene.shapes)
                if place != number and other.color == thing.color
            ]
            if not others:
                continue
            words = (Segment(f"the {thing.color}"), Segment(f" {thing.name}", 0), Segment("."))
            (trace,) = backbone.trace(backbone.collate([backbone.prepare(image, words)]))
            maps = attention_maps(trace)
            size = (scene.height, scene.width)
            (found,) = resample(maps.maps, maps.image_box, WHOLE_IMAGE, size)  # (C, H, W)
            mass = torch.einsum("chw,phw->cp", found, truth)
            density = mass / truth.sum((1, 2)).clamp(min=1)
            right.append(density[:, number] > density[:, others].amax(1))
    shares = torch.stack(right).float().mean(0)
    return {"sharing_a_color": len(right), "told_apart": round(float(shares.max()), 4)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure a tiny model.")
    parser.add_argument("backbone")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--scenes", type=int, default=200)
    arguments = parser.parse_args()
    spec = load_backbones().get(arguments.backbone)
    loaded = load_class(spec).load(spec, arguments.model)
    figures = captions(loaded, arguments.scenes) | focus(loaded, arguments.scenes)
    figures |= told_apart(loaded, arguments.scenes // 2)
    print(json.dumps({"backbone": arguments.backbone, "model": arguments.model, **figures}))
