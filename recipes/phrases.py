"""Referring expressions of drawn scenes by kind: what a person says to tell two things of one name.

For the recipes that measure and teach them. Those of the data sets, a part of these, are in
`flmm_core.data.drawn.scenes`.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from flmm_core.data.drawn.narrations import place_words
from flmm_core.data.drawn.scenes import DIRECTIONS, Scene, Shape, comparisons, relations

KINDS = ("relation", "side", "size", "place", "ordinal", "neighbor")
"""left of the star, the left ring, the small ring, in the top left, second from the left, next to
the star"""
RANKS = ("first", "second", "third", "fourth")
ENDS = {"left": "left", "right": "right", "upper": "top", "lower": "bottom"}
NEARER = 0.6
"""A neighbor is at most so far away, relative to the way to the next thing of the name."""


class Words(NamedTuple):
    """A referring expression; `text` has no article.

    The name ends at character `name`, what follows it tells things of one name apart.
    """

    kind: str
    text: str
    name: int

    @property
    def parts(self) -> tuple[str, str]:
        """The expression up to its name, and the rest."""
        return self.text[: self.name], self.text[self.name :]


def twins(scene: Scene, shape: Shape) -> list[Shape]:
    """The other things of the same color and shape."""
    return [other for other in scene.shapes if other.kind == shape.kind and other is not shape]


def words_for(scene: Scene, shape: Shape) -> list[Words]:
    """Every expression that tells a thing from those of its name; none if there are none."""
    others = twins(scene, shape)
    if not others:
        return []
    name = shape.words
    found = [Words("side", f"{side} {name}", len(f"{side} {name}")) for side in sides(scene, shape)]
    if all(other.size != shape.size for other in others):
        found.append(Words("size", f"{shape.size} {name}", len(f"{shape.size} {name}")))
    rest = [("relation", relation) for relation in relations(scene, shape)]
    place = place_words(scene, shape)
    if all(place_words(scene, other) != place for other in others):
        rest.append(("place", place))
    rest += [("ordinal", rank) for rank in ranks(scene, shape)]
    rest += [("neighbor", f"next to the {one.words}") for one in neighbors(scene, shape)]
    return found + [Words(kind, f"{name} {more}", len(name)) for kind, more in rest]


def sides(scene: Scene, shape: Shape) -> list[str]:
    """ "left", "upper", ...: as the data sets' comparisons, where a thing is clearly outermost."""
    return comparisons(scene, shape)


def ranks(scene: Scene, shape: Shape) -> list[str]:
    """ "second from the left" and its kind, where neighbors in the order are clearly apart."""
    row = [shape, *twins(scene, shape)]
    found = []
    for _, side, axis, sign in DIRECTIONS:
        at = sorted(row, key=lambda one: sign * getattr(one, axis))
        gaps = np.diff([sign * getattr(one, axis) for one in at])
        rank = next(number for number, one in enumerate(at) if one is shape)
        if len(at) <= len(RANKS) and gaps.min() > min(one.radius for one in row):
            found.append(f"{RANKS[rank]} from the {ENDS[side]}")
    return found


def neighbors(scene: Scene, shape: Shape) -> list[Shape]:
    """The things of another name, one of its kind, that are near this one and far from its twins.

    Nearness is between centers.
    """
    found = []
    for one in scene.shapes:
        if one.kind == shape.kind or twins(scene, one):
            continue
        own = np.hypot(one.x - shape.x, one.y - shape.y)
        ways = [np.hypot(one.x - other.x, one.y - other.y) for other in twins(scene, shape)]
        if own <= NEARER * min(ways):
            found.append(one)
    return found
