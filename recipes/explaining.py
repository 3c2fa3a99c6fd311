"""Do words look at what they name? What docs/explain.md shows.

python -m recipes.explaining                      # all backbones, their tiny models
python -m recipes.explaining qwen --model FOLDER  # any model of a family

Scenes that nothing was trained or chosen on, each with a sentence that names its things in random
order, with places and relations. For every noun that names a thing:

token -> region   The pointing game of Zhang et al. (IJCV 2018): is the highest point of the noun's
                  map on the thing? The point is `Explanation.peak`, or within 3 % of the image's
                  longer side of the thing, as their 15 pixels of about 500; or, for comparison,
                  that of the map enlarged bicubically, as overlays are drawn, or the center of the
                  highest cell.
region -> token   Is the noun the first of all words that look at the thing, given its mask, or the
                  point in it that is nearest to its center?

Heads are chosen on other scenes: with their masks, as `flmm explain` does, or without, by what
Kang et al. (CVPR 2025) choose them: heads that attend to the image at all, and of these the ones
whose maps have the lowest spatial entropy.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from flmm_core.data.drawn.narrations import narration
from flmm_core.data.drawn.scenes import Scene, make_scene, paint
from flmm_core.explain.explanation import Explanation
from flmm_core.explain.heads import SCENES, SEED, localization_heads
from flmm_core.explain.make import TOP_K, explain
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment, caption_text

UNSEEN = 7_151
WAYS = {
    "heads": f"{TOP_K} heads, chosen with masks",
    "entropy": f"{TOP_K} heads, chosen without masks",
    "mean": "mean of all heads",
    "chance": "chance",
}
TOLERANCE = 15 / 500
"""How far from a thing a point still counts, of the image's longer side."""
COLUMNS = (
    "| model | maps | peak | peak within 3 % | bicubic peak | center of the highest cell "
    "| noun first, of its mask | noun first, of its center |"
)


class Named(NamedTuple):
    """A noun of a sentence, and the thing that it names."""

    word: int
    thing: int


def named(found: Explanation, scene: Scene) -> list[Named]:
    """The nouns that name a thing of the scene: those behind its color."""
    kinds = {shape.kind: number for number, shape in enumerate(scene.shapes)}
    texts = [word.text for word in found.words]
    pairs = itertools.pairwise(texts)
    return [Named(place, kinds[pair]) for place, pair in enumerate(pairs, start=1) if pair in kinds]


def highest(values: NDArray[np.float32]) -> tuple[float, float]:
    """(y, x) the center of the highest of (h, w), in fractions of the height and width."""
    row, column = divmod(int(values.argmax()), values.shape[1])
    return (row + 0.5) / values.shape[0], (column + 0.5) / values.shape[1]


def pointed(found: Explanation, word: int, way: str, mask: NDArray[np.bool_]) -> list[bool]:
    """Whether a word's points are on a mask: see `COLUMNS`."""
    values, size = found.map(word, way), (mask.shape[1], mask.shape[0])
    bicubic = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BICUBIC))
    x, y = found.peak(word, way)
    fractions = (y / mask.shape[0], x / mask.shape[1]), highest(bicubic), highest(values)
    near = around(mask)
    (peak, tolerant), *others = (
        [bool(one[tuple(np.multiply(place, mask.shape).astype(int))]) for one in (mask, near)]
        for place in fractions
    )
    return [peak, tolerant, *(on for on, _ in others)]


def around(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels that are at most `TOLERANCE` from a mask."""
    apart = np.asarray(ndimage.distance_transform_edt(~mask))
    return apart <= TOLERANCE * max(mask.shape)


def center(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """(x, y) the pixel of a mask that is nearest to its center of mass."""
    rows, columns = np.nonzero(mask)
    nearest = np.hypot(rows - rows.mean(), columns - columns.mean()).argmin()
    return int(columns[nearest]), int(rows[nearest])


def quiet_heads(backbone: Backbone, scenes: int = SCENES) -> list[int]:
    """The channels that Kang et al. would choose, best first; no mask is looked at."""
    mass, entropy = [], []
    for number in range(scenes):
        scene = make_scene((SEED, number), "plain")
        image = Image.fromarray(paint(scene)[0])
        for shape in scene.shapes:
            caption = Segment(f"the {shape.color} "), Segment(shape.name, 0), Segment(".")
            (trace,) = backbone.trace(backbone.collate([backbone.prepare(image, caption)]))
            cells = [view.token_index.numel() for view in trace.views]
            parts = trace.attention.split(cells, 3)  # (L, N, 1, cells) each
            mass.append(torch.cat([part.sum(3).flatten() for part in parts]))
            entropy.append(spatial_entropy(attention_maps(trace).maps[0]))
    attending, quiet = torch.stack(mass).mean(0), np.mean(entropy, axis=0)
    enough = attending >= attending.median()
    return sorted(enough.nonzero().flatten().tolist(), key=lambda channel: float(quiet[channel]))


def spatial_entropy(maps: Tensor) -> NDArray[np.float64]:
    """(C,) of (C, h, w): the entropy of the areas of what is brighter than the mean, by piece."""
    found = []
    for one in maps.numpy():
        pieces, _ = ndimage.label(one > one.mean(), np.ones((3, 3)))
        areas = np.bincount(pieces.ravel())[1:]
        shares = areas / max(1, areas.sum())
        found.append(-(shares * np.log(shares)).sum())
    return np.array(found)


def measure(backbone: Backbone, scenes: int) -> tuple[dict[str, list[Any]], int, int]:
    """Per way, the hits of each noun; how many nouns, and how many cells were sinks."""
    quiet = quiet_heads(backbone)[:TOP_K]
    hits: dict[str, list[Any]] = {way: [] for way in WAYS}
    sinks = 0
    for number in range(scenes):
        scene = make_scene((UNSEEN, number), "plain")
        pixels, masks, _ = paint(scene)
        text = caption_text(narration(scene, np.random.default_rng((UNSEEN, number))))
        found = explain(backbone, Image.fromarray(pixels), text=text)
        found.ways["entropy"] = found.of_channels(quiet)  # type: ignore[index]
        sinks += sum(int(found.ways[way].sinks.sum()) for way in ("heads", "mean"))
        nouns = named(found, scene)
        for word, thing in nouns:
            mask, own = masks[thing], {one.word for one in nouns if one.thing == thing}
            for way in ("heads", "entropy", "mean"):
                first = [
                    found.words_at(region, way)[0].word in own for region in (mask, center(mask))
                ]
                hits[way].append((*pointed(found, word, way, mask), *first))
            words = sum(word.names for word in found.words)
            on, near = mask.mean(), around(mask).mean()
            hits["chance"].append((on, near, on, on, *2 * [len(own) / words]))
    return hits, len(hits["mean"]), sinks


def table(backbones: Iterable[Backbone], scenes: int) -> Iterable[str]:
    """The lines of a Markdown table, and a sentence below it."""
    yield COLUMNS
    yield "|---|---|--:|--:|--:|--:|--:|--:|"
    below = []
    for backbone in backbones:
        name = f"`{backbone.spec.name}` {backbone.model}"
        hits, nouns, sinks = measure(backbone, scenes)
        for way, title in WAYS.items():
            figures = np.mean(np.array(hits[way], np.float64), axis=0)
            yield f"| {name} | {title} | {' | '.join(f'{figure:.2f}' for figure in figures)} |"
        heads = localization_heads(backbone)
        shares = ", ".join(f"{heads.shares[channel]:.2f}" for channel in heads.best(TOP_K))
        below.append(
            f"{name}: {nouns} nouns; {sinks} sinks; share of the chosen heads' maps on the thing "
            f"{shares}, by chance {heads.area:.2f}."
        )
    yield from ("", *below)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure where the words of a model look.")
    known = load_backbones()
    parser.add_argument("backbones", nargs="*", help="default: all with a tiny model")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--scenes", type=int, default=150)
    given = parser.parse_args(arguments)
    names = given.backbones or ["qwen", "deepseek_vl", "llava_next"]
    loaded = (load_class(known.get(name)).load(known.get(name), given.model) for name in names)
    for line in table(loaded, given.scenes):
        print(line, flush=True)


if __name__ == "__main__":
    main()
