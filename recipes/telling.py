"""Captions that tell things of one name apart, and for each token what it should look at.

A name that fits one thing of an image looks at it already (`recipes.aligning`). Where two things
have one name, the image is drawn once more without the other one: there the name finds the thing
that the expression means. So expressions are taught by names; no mask and no place is looked at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flmm_core.data.drawn.narrations import place_words
from flmm_core.data.drawn.scenes import (
    COLORS,
    HARD_KINDS,
    SHAPES,
    Scene,
    make_scene,
    paint,
    relations,
)
from recipes.phrases import twins, words_for
from recipes.pretrain import absent_names
from recipes.words import PROMPT

SCENES = ("plain", *HARD_KINDS)
SHARES = (0.25, 0.3, 0.2, 0.09, 0.07, 0.09)
PALETTE = 3
"""So many colors and shapes occur in a batch: most names then fit several of its images."""
FAVORED = {"relation": 4, "side": 4, "size": 3}
"""How often a kind of expression is chosen; the others count 1."""


class Name(NamedTuple):
    """A color and a shape."""

    color: str
    name: str

    @property
    def text(self) -> str:
        return f"the {self.color} {self.name}"


class Piece(NamedTuple):
    """A piece of a caption.

    Attributes:
        text: The words.
        thing: What the expression up to each of its tokens means, if that is one known thing.
        name: The name that it ends with.
    """

    text: str
    thing: int | None = None
    name: Name | None = None


def in_few_colors(scene: Scene, colors: Sequence[int], names: Sequence[int]) -> Scene:
    """The scene with its colors and shapes replaced: (6,) the index of each one's new one."""
    palette, shapes = list(COLORS), []
    for shape in scene.shapes:
        color = palette[colors[palette.index(shape.color)]]
        shift = np.subtract(shape.rgb, COLORS[shape.color])
        rgb = tuple(int(v) for v in np.clip(np.add(COLORS[color], shift), 0, 255))
        name = SHAPES[names[SHAPES.index(shape.name)]]
        shapes.append(replace(shape, color=color, name=name, rgb=rgb))
    return replace(scene, shapes=tuple(shapes))


def say(scene: Scene, thing: int, rng: np.random.Generator) -> list[Piece]:
    """One expression for a thing, or none."""
    shape = scene.shapes[thing]
    kind = Name(*shape.kind)
    if not twins(scene, shape):
        article = ("the ", "")[int(rng.random() < 0.3)]
        size = f"{shape.size} " if rng.random() < 0.3 else ""
        named = [Piece(f"{article}{size}{shape.color}"), Piece(f" {shape.name}", thing, kind)]
        related = relations(scene, shape)
        if related and rng.random() < 0.15:
            named += ending(" " + related[int(rng.integers(len(related)))], thing)
        return named
    every = words_for(scene, shape)
    if not every:
        return []
    chances = np.array([FAVORED.get(words.kind, 1) for words in every], float)
    words = every[int(rng.choice(len(every), p=chances / chances.sum()))]
    before, after = words.parts
    start = f"the {before}".rsplit(" ", 1)[0]
    if not after:
        return [Piece(start), Piece(f" {shape.name}", thing, kind)]
    named = [Piece(start), Piece(f" {shape.name}", None, kind)]
    if words.kind == "relation":
        return [*named, *ending(after, thing)]
    middle, end = after.rsplit(" ", 1)
    last = Name(*middle.split()[-1:], end) if words.kind == "neighbor" else None
    return [*named, Piece(middle), Piece(f" {end}", thing, last)]


def ending(relation: str, thing: int) -> list[Piece]:
    """ " left of the blue star": from its first word on, it is known which thing is meant."""
    *_, color, name = relation.split()
    start = relation[: -len(f" {color} {name}")]
    end = Piece(f" {name}", thing, Name(color, name))
    return [Piece(start, thing), Piece(f" {color}", thing), end]


def caption(
    scene: Scene, rng: np.random.Generator, often: int | None = None, absent: int = 2
) -> tuple[list[Piece], bool]:
    """A caption, and whether it is a complete answer: a narration, or expressions.

    Of the thing `often`, there are up to three expressions.
    """
    order = [int(index) for index in rng.permutation(len(scene.shapes))]
    if rng.random() < 0.75:
        statements = []
        for thing in order:
            for _ in range(3 if thing == often else 1):
                said = say(scene, thing, rng)
                if said and rng.random() < 0.6:
                    said.append(Piece(f" {place_words(scene, scene.shapes[thing])}"))
                if said:
                    statements.append([*said, Piece(".")])
        gone = absent_names(scene, rng)[:absent]
        statements += [[Piece(name), Piece(" is not there.")] for name in gone]
        if statements:
            chosen = [statements[i] for i in rng.permutation(len(statements))][:6]
            for later in chosen[1:]:
                later[0] = later[0]._replace(text=f" {later[0].text}")
            return [piece for statement in chosen for piece in statement], False
    pieces = []
    for position, thing in enumerate(order):
        shape = scene.shapes[thing]
        size = f"{shape.size} " if rng.random() < 0.3 else ""
        words = f"{size}{shape.color}"
        article = "an" if words[0] in "aeiou" else "a"
        joint = "" if not position else " and " if position == len(order) - 1 else ", "
        target = None if twins(scene, shape) else thing
        named = Piece(f" {shape.name}", target, Name(*shape.kind))
        pieces += [
            Piece(f"{joint}{article} {words}"),
            named,
            Piece(f" {place_words(scene, shape)}"),
        ]
    return [*pieces, Piece(".")], True


def without_twins(scene: Scene, thing: int) -> Scene:
    """The scene without the other things of a thing's name."""
    shape = scene.shapes[thing]
    kept = tuple(one for one in scene.shapes if one is shape or one.kind != shape.kind)
    return replace(scene, shapes=kept)


@dataclass(frozen=True)
class Looks:
    """N tokens of a batch's captions, and what each should look at.

    `sample`, `column`, `image` (N,): the caption, the column in the sequence, and the image in
    which the name `goal` finds it.
    """

    sample: Tensor
    column: Tensor
    image: Tensor
    goal: list[Name]


@dataclass(frozen=True)
class Lesson:
    """A batch: prompts padded on the left, captions on the right, all from one column on.

    `fewer` are prompts with B' images drawn once more, in which some things are missing; they are
    images B, B + 1, ... of `Looks`.
    """

    inputs: dict[str, Tensor]
    fewer: dict[str, Tensor]
    labels: Tensor  # (B, S), -100 where there is no loss
    start: int
    things: list[list[Name]]  # of each image
    names: Looks
    wholes: Looks


class Lessons:
    """Batches without end; the batch of a step depends on the seed and the step alone."""

    def __init__(self, processor: Any, size: int, seed: int) -> None:
        self.processor, self.size, self.seed = processor, size, seed
        message = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
        ]
        self.prompt = processor.apply_chat_template(message, add_generation_prompt=True)

    def scenes(self, step: int) -> list[Scene]:
        """The scenes of a step, in its few colors and shapes."""
        rng = np.random.default_rng((self.seed, step))
        parts = [rng.permutation(6)[rng.permutation(6) % PALETTE] for _ in range(2)]
        found = []
        for index in range(self.size):
            kind = SCENES[int(rng.choice(len(SCENES), p=SHARES))]
            scene = make_scene((self.seed, step, index), kind, count=(2, 4), shared=0.6)
            found.append(in_few_colors(scene, *parts))
        return found

    def batch(self, step: int) -> Lesson:
        """The batch of a step."""
        tokenizer, scenes = self.processor.tokenizer, self.scenes(step)
        answers: list[list[int]] = []
        pictures = [Image.fromarray(paint(scene)[0]) for scene in scenes]
        again: list[Image.Image] = []
        looks: dict[str, list[tuple[int, int, int, Name]]] = {"whole": [], "name": []}
        for number, scene in enumerate(scenes):
            rng = np.random.default_rng((2, self.seed, step, number))
            able = [n for n, s in enumerate(scene.shapes) if words_for(scene, s)]
            often = int(rng.choice(able)) if able else None
            pieces, complete = caption(scene, rng, often)
            if often is not None and not complete:
                again.append(Image.fromarray(paint(without_twins(scene, often))[0]))
            ids: list[int] = []
            for piece in pieces:
                more = tokenizer(piece.text, add_special_tokens=False)["input_ids"]
                end = len(ids) + len(more)
                if piece.thing is not None and piece.thing in (often, *unique(scene)):
                    image = len(scenes) + len(again) - 1 if piece.thing == often else number
                    goal = Name(*scene.shapes[piece.thing].kind)
                    looks["whole"] += [(number, c, image, goal) for c in range(len(ids), end)]
                if piece.name:
                    looks["name"].append((number, end - 1, number, piece.name))
                ids += more
            answers.append(ids + [tokenizer.eos_token_id] * complete)
        inputs, fewer = (
            dict(
                self.processor(
                    text=[self.prompt] * len(images),
                    images=images,
                    return_tensors="pt",
                    padding=True,
                )
            )
            for images in (pictures, again or pictures[:1])
        )
        start = inputs["input_ids"].shape[1]
        longest = max(map(len, answers))
        tail = torch.full((len(answers), longest), tokenizer.pad_token_id)
        for row, ids in zip(tail, answers, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        used = torch.arange(longest) < torch.tensor([len(ids) for ids in answers])[:, None]
        labels = torch.full_like(inputs["input_ids"], -100)
        labels = torch.cat([labels, torch.where(used, tail, -100)], 1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], used.long()], 1)
        if "mm_token_type_ids" in inputs:
            zeros = torch.zeros_like(tail)
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], zeros], 1)
        things = [[Name(*shape.kind) for shape in scene.shapes] for scene in scenes]
        names, wholes = (as_looks(looks[key], start) for key in ("name", "whole"))
        return Lesson(inputs, fewer, labels, start, things, names, wholes)


def unique(scene: Scene) -> list[int]:
    """The things whose name fits no other."""
    return [number for number, shape in enumerate(scene.shapes) if not twins(scene, shape)]


def as_looks(found: list[tuple[int, int, int, Name]], start: int) -> Looks:
    """Of (caption, column in the caption, image, name)."""
    rows = torch.tensor([row[:3] for row in found]).reshape(-1, 3)
    return Looks(rows[:, 0], rows[:, 1] + start, rows[:, 2], [goal for *_, goal in found])
