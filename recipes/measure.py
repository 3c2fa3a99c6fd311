"""What a twin knows: are the things it names there, and do its heads look at what it names?

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

from flmm_core.data.shapes import COLOURS, SHAPES, make_scene, narration, paint
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone import Backbone
from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_PICTURE
from flmm_core.plugins import load_backbones, load_class

SEED = 90
NAMED = re.compile(rf"({'|'.join(COLOURS)}) ({'|'.join(SHAPES)})")


def captions(backbone: Backbone, scenes: int) -> dict[str, Any]:
    """Greedy captions of unseen plain scenes: how many of the named things are there."""
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
    """Share of each head's attention that lies on the object, for phrases in a narration."""
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
        on_picture = resample(maps.maps, maps.picture_box, WHOLE_PICTURE, size)
        on_picture = on_picture / on_picture.sum((2, 3), keepdim=True).clamp(min=1e-12)
        truth = torch.from_numpy(masks).float()
        mass += list(torch.einsum("pchw,phw->pc", on_picture, truth))
        area += truth.mean((1, 2)).tolist()
    shares, mean_area = torch.stack(mass).mean(0), sum(area) / len(area)
    return {
        "phrases": len(area),
        "object_area": round(mean_area, 4),
        "best_head_mass": round(float(shares.max()), 4),
        "best_head_over_area": round(float(shares.max()) / mean_area, 2),
        "best_head": int(shares.argmax()),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Measure a twin.")
    parser.add_argument("backbone")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--scenes", type=int, default=200)
    arguments = parser.parse_args()
    spec = load_backbones().get(arguments.backbone)
    loaded = load_class(spec).load(spec, arguments.model)
    figures = captions(loaded, arguments.scenes) | focus(loaded, arguments.scenes)
    print(json.dumps({"backbone": arguments.backbone, "model": arguments.model, **figures}))
