"""Where two things have one name: how much of a head's attention is on the one that is meant?

    python -m recipes.of_two                         # all backbones, their tiny models
    python -m recipes.of_two qwen --model FOLDER     # any model of a family
    python -m recipes.of_two qwen --heads            # every layer and head

Drawn scenes with two things of one color and shape, and expressions for either, by kind
(`recipes.phrases`). For every layer and head, the attention of

end    the expression's last token: "star" of "the red ring left of the blue star",
noun   its name's last token: "ring",
mean   all of its tokens, as F-LMM pools them.

"share" is the attention on the right one in that on both, averaged (chance: .50); "right" is how
often it is more than half; "mass" is the share of the right one in the attention to the image. The
best head is chosen by its share on half of the expressions, the figures are of the others.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.data.drawn.scenes import Scene, make_scene, paint
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.resample import WHOLE_IMAGE, resample
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment
from recipes.phrases import KINDS, Words, twins, words_for

SEED = 93
TOKENS = ("end", "noun", "mean")


def captions(words: Words) -> tuple[tuple[Segment, ...], tuple[Segment, ...]]:
    """The phrase with its noun (0) and its end (1) marked, and marked as a whole (0)."""
    before, after = (f"the {words.parts[0]}", words.parts[1])
    start, noun = before.rsplit(" ", 1)
    if not after:  # the noun is the end
        marked = (Segment(start), Segment(f" {noun}", 0), Segment("."))
    else:
        middle, end = after.rsplit(" ", 1)
        ends = (Segment(middle), Segment(f" {end}", 1), Segment("."))
        marked = (Segment(start), Segment(f" {noun}", 0), *ends)
    return marked, (Segment(f"the {words.text}", 0), Segment("."))


@torch.no_grad()
def masses(backbone: Backbone, scene: Scene, truth: Tensor, image: Image.Image) -> Iterator[Any]:
    """(kind, (3, C, 2)) of each expression: shares of the maps on the right one and the wrong."""
    said = [(n, w) for n, one in enumerate(scene.shapes) for w in words_for(scene, one)]
    if not said:
        return
    texts = [text for _, words in said for text in captions(words)]
    first = backbone.prepare(image, texts[0])
    samples = [first, *(backbone.prepare(image, text, like=first) for text in texts[1:])]
    traces = iter(backbone.trace(backbone.collate(samples)))
    for number, words in said:
        shape = scene.shapes[number]
        wrong = [n for n, one in enumerate(scene.shapes) if one in twins(scene, shape)]
        both = torch.stack([truth[number], truth[wrong].amax(0)])
        maps = [attention_maps(next(traces)), attention_maps(next(traces))]
        found = []
        for one in maps:
            size = (scene.height, scene.width)
            on_image = resample(one.maps, one.image_box, WHOLE_IMAGE, size)  # (P, C, H, W)
            on_image = on_image / on_image.sum((2, 3), keepdim=True).clamp(min=1e-12)
            found.append(torch.einsum("pchw,nhw->pcn", on_image, both))
        marked, whole = found
        yield words.kind, torch.stack([marked[-1], marked[0], whole[0]])


def measure(backbone: Backbone, scenes: int) -> dict[str, Tensor]:
    """By kind, (N, 3, C, 2): expressions, `TOKENS`, channels, shares on the right and wrong one."""
    found: dict[str, list[Tensor]] = defaultdict(list)
    for index in range(scenes):
        scene = make_scene((SEED, index), ("relation", "size")[index % 2], count=(3, 4))
        pixels, masks, _ = paint(scene)
        image, truth = Image.fromarray(pixels), torch.from_numpy(masks).float()
        for kind, mass in masses(backbone, scene, truth, image):
            found[kind].append(mass)
    return {kind: torch.stack(found[kind]) for kind in KINDS if kind in found}


def shares(masses: Tensor) -> Tensor:
    """(..., 2) -> (...): what the right one has of both; a half where neither has any."""
    both = masses.sum(-1)
    return torch.where(both > 1e-6, masses[..., 0] / both.clamp(min=1e-12), 0.5)


def rows(backbone: Backbone, found: dict[str, Tensor]) -> Iterator[str]:
    """A line of a Markdown table by kind, of the head that is best at each."""
    name = f"`{backbone.spec.name}` {backbone.model}"
    for kind, mass in found.items():
        cells = []
        for place in range(len(TOKENS)):
            share = shares(mass[:, place])  # (N, C)
            head = int(share[::2].mean(0).argmax())
            rest = share[1::2, head]
            figures = rest.mean(), (rest > 0.5).float().mean(), mass[1::2, place, head, 0].mean()
            cells.append(" / ".join(f"{figure:.2f}" for figure in figures) + f" ({head})")
        yield f"| {name} | {kind} | {len(mass)} | {' | '.join(cells)} |"


def by_head(backbone: Backbone, found: dict[str, Tensor]) -> Iterator[str]:
    """Per layer and head, the mean share of the end token by kind; views one below the other."""
    yield "| view, layer, head | " + " | ".join(found) + " |"
    yield "|---|" + "--:|" * len(found)
    layers = backbone.text_config.num_hidden_layers
    heads = backbone.text_config.num_attention_heads
    for channel in range(backbone.attention_channels):
        view, rest = divmod(channel, layers * heads)
        layer, head = divmod(rest, heads)
        figures = [shares(mass[:, 0, channel]).mean() for mass in found.values()]
        cells = " | ".join(f"{figure:.2f}" for figure in figures)
        yield f"| {view}, {layer}, {head} | {cells} |"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description="Measure which of two things a phrase looks at.")
    known = load_backbones()
    parser.add_argument("backbones", nargs="*", help="default: all with a tiny model")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--heads", action="store_true", help="every layer and head")
    given = parser.parse_args(arguments)
    columns = " | ".join(f"{token}: share / right / mass (head)" for token in TOKENS)
    if not given.heads:
        print(f"| model | kind | expressions | {columns} |\n|---|---|--:|---|---|---|")
    for name in given.backbones or ["qwen", "deepseek_vl", "llava_next"]:
        loaded = load_class(known.get(name)).load(known.get(name), given.model)
        found = measure(loaded, given.scenes)
        for line in (by_head if given.heads else rows)(loaded, found):
            print(line, flush=True)


if __name__ == "__main__":
    main()
