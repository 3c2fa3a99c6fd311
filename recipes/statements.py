"""What is said of drawn scenes, piece by piece: expressions that tell things of one name apart."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flmm_core.data.drawn.narrations import place_words
from flmm_core.data.drawn.scenes import Scene, relations
from recipes.phrases import Words, twins, words_for
from recipes.pretrain import absent_names

CHOSEN = {"relation": 3.0, "side": 4.0, "size": 5.0, "place": 1.0, "ordinal": 0.4, "neighbor": 0.2}
"""How often a kind of expression is chosen."""
JOINED = 0.6
"""How often all statements of a scene are in one text."""
EACH = 3
"""So many expressions for each thing that shares its name."""


class Piece(NamedTuple):
    """A piece of a text.

    Attributes:
        text: The words.
        thing: What the expression up to each of its tokens means, if that is one known thing.
        placed: Only the place tells that thing from others of its name.
        name: The color and shape that it ends with.
        learned: The model learns to say it.
    """

    text: str
    thing: int | None = None
    name: tuple[str, str] | None = None
    learned: bool = False
    placed: bool = False


def telling(scene: Scene, thing: int, words: Words, place: bool) -> list[Piece]:
    """An expression for a thing; with a place behind it, which the model learns to say."""
    shape, (before, after) = scene.shapes[thing], words.parts
    known, placed = None if after else thing, words.kind != "size"
    said = [
        Piece(f"the {before}".rsplit(" ", 1)[0]),
        Piece(f" {shape.name}", known, shape.kind, placed=placed),
    ]
    if words.kind == "relation":  # from its first word on, it is known which thing is meant
        said += ending(after, thing)
    elif after:
        middle, end = after.rsplit(" ", 1)
        last = (middle.split()[-1], end) if words.kind == "neighbor" else None
        said += [Piece(middle), Piece(f" {end}", thing, last, placed=placed)]
    return [*said, Piece(f" {place_words(scene, shape)}.", learned=True)] if place else said


def ending(relation: str, thing: int) -> list[Piece]:
    """ " left of the blue star"."""
    start, color, name = relation.rsplit(" ", 2)
    return [
        Piece(f"{start} {color}", thing, placed=True),
        Piece(f" {name}", thing, (color, name), placed=True),
    ]


def naming(scene: Scene, thing: int, rng: np.random.Generator) -> list[Piece]:
    """The name of a thing that shares it with none, now and then with a size or a relation."""
    shape = scene.shapes[thing]
    article = ("the ", "")[int(rng.random() < 0.3)]
    size = f"{shape.size} " if rng.random() < 0.3 else ""
    said = [Piece(f"{article}{size}{shape.color}"), Piece(f" {shape.name}", thing, shape.kind)]
    related = relations(scene, shape)
    if related and rng.random() < 0.3:
        said += ending(" " + related[int(rng.integers(len(related)))], thing)
    return said


def narration(scene: Scene, rng: np.random.Generator) -> list[Piece]:
    """A complete answer: every thing and its place."""
    order = [int(index) for index in rng.permutation(len(scene.shapes))]
    pieces = []
    for position, thing in enumerate(order):
        shape = scene.shapes[thing]
        words = f"{shape.size} {shape.color}" if rng.random() < 0.3 else shape.color
        article = "an" if words[0] in "aeiou" else "a"
        joint = "" if not position else " and " if position == len(order) - 1 else ", "
        known = None if twins(scene, shape) else thing
        pieces += [
            Piece(f"{joint}{article} {words}", learned=True),
            Piece(f" {shape.name}", known, shape.kind, learned=True),
            Piece(f" {place_words(scene, shape)}", learned=True),
        ]
    return [*pieces, Piece(".", learned=True)]


def texts(scene: Scene, rng: np.random.Generator) -> list[list[Piece]]:
    """What is said of a scene; the last text is a complete answer.

    The others are single statements or all statements in one text, as the captions of "standard"
    and of "flmm-paper" are. They are not learned from their first word on, so that greedy answers
    stay narrations.
    """
    found = []
    for thing, shape in enumerate(scene.shapes):
        kinds: dict[str, list[Words]] = {}
        for words in words_for(scene, shape):
            kinds.setdefault(words.kind, []).append(words)
        if not twins(scene, shape):
            found.append(naming(scene, thing, rng))
        elif kinds:
            names, chances = list(kinds), np.array([CHOSEN[kind] for kind in kinds])
            count = min(EACH, len(names))
            for kind in rng.choice(names, count, replace=False, p=chances / chances.sum()):
                words = kinds[str(kind)][int(rng.integers(len(kinds[str(kind)])))]
                found.append(telling(scene, thing, words, bool(rng.random() < 0.4)))
    found.append([Piece(absent_names(scene, rng)[0]), Piece(" is not there.", learned=True)])
    if rng.random() < JOINED:
        found = [joined([found[number] for number in rng.permutation(len(found))])]
    return [*found, narration(scene, rng)]


def joined(statements: list[list[Piece]]) -> list[Piece]:
    """One text of statements."""
    pieces: list[Piece] = []
    for statement in statements:
        first, *rest = statement
        first = first._replace(text=f" {first.text}") if pieces else first
        end = [] if statement[-1].text.endswith(".") else [Piece(".")]
        pieces += [first, *rest, *end]
    return pieces
