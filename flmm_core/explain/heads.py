"""Which attention heads of a model localize: those whose maps lie on the thing that is named.

They are found on a few drawn scenes, whose masks are known, and kept in the cache folder by the
identity of the model. That a few heads of a frozen model localize is from Kang et al., "Your Large
Vision-Language Model Only Needs A Few Attention Heads For Visual Grounding" (CVPR 2025), who choose
them without masks, by the entropy of their maps; docs/explain.md compares.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from flmm_core.data.drawn.scenes import VERSION, Scene, make_scene, paint, relations
from flmm_core.evaluation.baselines import Labeled, channel_shares
from flmm_core.files import cache_folder, write_json
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.types import AttentionMaps
from flmm_core.progress import Progress
from flmm_core.segment import Segment

SCENES = 24
SEED = 7_150
"""Of the scenes; no other data set is drawn from it."""
CELLS = 6
"""Scenes are enlarged, at most four times, until the longer side of a grid has so many cells."""
_FOUND: WeakKeyDictionary[Backbone, LocalizationHeads] = WeakKeyDictionary()


@dataclass(frozen=True)
class LocalizationHeads:
    """The attention heads of a model, ranked by how well they localize.

    Attributes:
        shares: (C,) per channel, the mean share of a noun's map that lies on the thing it names.
        area: The mean share of the image that these things cover: what chance would give.
    """

    shares: tuple[float, ...]
    area: float

    def best(self, count: int) -> tuple[int, ...]:
        """The `count` best channels, best first."""
        order = sorted(range(len(self.shares)), key=lambda channel: -self.shares[channel])
        return tuple(order[:count])


def localization_heads(
    backbone: Backbone, *, scenes: int = SCENES, progress: Progress | None = None
) -> LocalizationHeads:
    """The heads of a model, from the cache folder if they have been found before."""
    if (known := _FOUND.get(backbone)) is not None and scenes == SCENES:
        return known
    path = cache_folder() / "localization-heads" / f"{_key(backbone, scenes)}.json"
    try:
        found = TypeAdapter(LocalizationHeads).validate_json(path.read_bytes())
    except (OSError, ValidationError):
        found = None
    if found is None or len(found.shares) != backbone.attention_channels:
        found = find_heads(backbone, scenes=scenes, progress=progress)
        write_json(path, asdict(found), compact=True)
    if scenes == SCENES:
        _FOUND[backbone] = found
    return found


def find_heads(
    backbone: Backbone, *, scenes: int = SCENES, seed: int = SEED, progress: Progress | None = None
) -> LocalizationHeads:
    """Find the heads on drawn scenes: one forward each."""
    progress = progress or Progress()
    labeled: list[Labeled] = []
    with progress.stage("Finding the heads that localize", scenes) as stage:
        for number in range(scenes):
            scene = make_scene((seed, number), "plain")
            labeled += labeled_nouns(backbone, scene)
            stage.advance()
    area = torch.cat([truth.flatten(1).float().mean(1) for _, truth in labeled]).mean()
    return LocalizationHeads(tuple(channel_shares(labeled).tolist()), float(area))


@torch.no_grad()
def labeled_nouns(backbone: Backbone, scene: Scene) -> Iterator[Labeled]:
    """The maps and masks of "ring" and "star" in "the red ring left of the blue star.".

    There is one caption for each thing of a scene; those without a relation have one noun. A head
    that looks at the ring all along does not localize: "star" names another thing.
    """
    pixels, masks, _ = paint(scene)
    captions, things = zip(*_captions(scene), strict=True)
    image = Image.fromarray(pixels)
    first = backbone.prepare(image, captions[0])
    for _ in range(2):  # the grids of some models have a fixed size
        if max(side for view in first.views for side in view.token_index.shape) < CELLS:
            image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)
            first = backbone.prepare(image, captions[0])
    samples = [first, *(backbone.prepare(image, each, like=first) for each in captions[1:])]
    traces = backbone.trace(backbone.collate(samples))
    for trace, named in zip(traces, things, strict=True):
        maps = attention_maps(trace)
        yield AttentionMaps(maps.maps.cpu(), maps.image_box), torch.from_numpy(masks[named])


def _captions(scene: Scene) -> Iterator[tuple[tuple[Segment, ...], list[int]]]:
    """For each thing a caption, and the indices of the things that its phrases name."""
    words = [shape.words for shape in scene.shapes]
    for thing, shape in enumerate(scene.shapes):
        caption, named = [Segment(f"the {shape.color} "), Segment(shape.name, 0)], [thing]
        if related := relations(scene, shape):
            where, color, name = related[thing % len(related)].rsplit(" ", 2)
            caption += Segment(f" {where} {color} "), Segment(name, 1)
            named.append(words.index(f"{color} {name}"))
        yield (*caption, Segment(".")), named


def _key(backbone: Backbone, scenes: int) -> str:
    facts: dict[str, Any] = {
        "drawn": VERSION,
        "captions": "with relations",
        "scenes": scenes,
        "seed": SEED,
        "model": asdict(backbone.identity()),
        "prompt": backbone.rendered_prompt(),
        "options": backbone.options.model_dump(mode="json"),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]
