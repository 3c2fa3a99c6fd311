"""Drawn scenes: deterministic images of colored shapes with exact masks and their words.

A scene is data (`Scene`), made from a seed by `make_scene`; `paint` turns it into an image and
one exact mask an object; `expressions` puts it into words. Every kind but "plain"
asks for more than a color and a shape, and is reported as a slice of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

VERSION = 6
"""Goes up when the same seed no longer gives the same image, words or files."""

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "green": (42, 157, 70),
    "blue": (38, 84, 214),
    "yellow": (242, 208, 44),
    "purple": (146, 58, 186),
    "orange": (244, 134, 28),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
Kind = Literal["plain", "relation", "size", "occlusion", "texture", "small"]
HARD_KINDS: tuple[Kind, ...] = ("relation", "size", "occlusion", "texture", "small")

DIRECTIONS = (
    ("left of", "left", "x", 1),
    ("right of", "right", "x", -1),
    ("above", "upper", "y", 1),
    ("below", "lower", "y", -1),
)
"""The words for a relation and for a comparison, the axis, and its sign."""

SMALL_RADIUS = (0.115, 0.145)
LARGE_RADIUS = (0.18, 0.235)
TINY_RADIUS = (0.055, 0.08)
IMAGE_SIDES = (96, 112, 128, 144, 176)

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shape:
    """One object: places and lengths in pixels, angles in radians; `textured` with stripes."""

    name: str
    color: str
    size: str
    x: float
    y: float
    radius: float
    angle: float
    rgb: tuple[int, int, int]
    textured: bool = False

    @property
    def kind(self) -> tuple[str, str]:
        return (self.color, self.name)

    @property
    def words(self) -> str:
        return f"{self.color} {self.name}"


@dataclass(frozen=True)
class Scene:
    """An image to be drawn; later shapes lie in front of earlier ones."""

    height: int
    width: int
    shapes: tuple[Shape, ...]
    background: str
    kind: Kind
    seed: int


# --- making ------------------------------------------------------------------------------------


def make_scene(
    seed: int | tuple[int, ...],
    kind: Kind = "plain",
    *,
    sides: tuple[int, ...] = IMAGE_SIDES,
    count: tuple[int, int] = (3, 4),
    radius: tuple[float, float] | None = None,
    shared: float = 0.4,
) -> Scene:
    """The scene of a seed: the same seed and arguments give the same scene everywhere.

    Args:
        seed: Any integer or integers.
        kind: What it takes to tell the objects apart.
        sides: Heights and widths to choose from, in pixels.
        count: Least and greatest number of objects.
        radius: Least and greatest radius in fractions of the shorter side, instead of the kind's.
        shared: How likely an object takes its color or its shape from another one.
    """
    rng = np.random.default_rng(seed)
    height, width = int(rng.choice(sides)), int(rng.choice(sides))
    wanted = int(rng.integers(count[0], count[1] + 1))
    shapes: list[Shape] = []
    kinds = _kinds(rng, max(wanted, 2 if kind in ("size", "occlusion") else wanted), shared)
    if kind == "relation":
        kinds = [kinds[0], kinds[0], *[k for k in kinds[1:] if k != kinds[0]]][: max(wanted, 3)]
    if kind == "size":
        kinds = [kinds[0], kinds[0], *kinds[1:]][: max(wanted, 2)]
    for index, (color, name) in enumerate(kinds):
        size = str(rng.choice(("small", "large")))
        if kind == "size" and index < 2:
            size = ("small", "large")[index]
        bounds = SMALL_RADIUS if size == "small" else LARGE_RADIUS
        if kind == "small":
            size, bounds = "small", TINY_RADIUS
        bounds = radius or bounds
        cover = shapes[-1] if kind == "occlusion" and index % 2 == 1 and shapes else None
        placed = _place(rng, height, width, shapes, bounds, cover)
        if placed is None:
            continue
        x, y, extent = placed
        jitter = rng.integers(-12, 13, size=3)
        red, green, blue = (
            int(np.clip(base + shift, 0, 255))
            for base, shift in zip(COLORS[color], jitter, strict=True)
        )
        angle = float(rng.uniform(-0.3, 0.3))
        textured = kind == "texture" or (kind != "plain" and rng.random() < 0.2)
        shapes.append(Shape(name, color, size, x, y, extent, angle, (red, green, blue), textured))
    strong = kind == "texture" or (kind != "plain" and rng.random() < 0.25)
    background = str(rng.choice(("stripes", "checks", "blobs") if strong else ("flat", "graded")))
    return Scene(height, width, tuple(shapes), background, kind, int(rng.integers(2**31)))


def _kinds(rng: np.random.Generator, count: int, shared: float) -> list[tuple[str, str]]:
    """`count` different (color, shape) pairs, many of them sharing a color or a shape."""
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        color, name = str(rng.choice(list(COLORS))), str(rng.choice(SHAPES))
        if kinds and rng.random() < shared:
            other = kinds[int(rng.integers(len(kinds)))]
            color, name = (other[0], name) if rng.random() < 0.5 else (color, other[1])
        if (color, name) not in kinds:
            kinds.append((color, name))
    return kinds


def _place(
    rng: np.random.Generator,
    height: int,
    width: int,
    shapes: list[Shape],
    bounds: tuple[float, float],
    cover: Shape | None,
) -> tuple[float, float, float] | None:
    """A free place (x, y, radius), or one that partly covers `cover`; None if there is none."""
    for _ in range(60):
        radius = float(rng.uniform(*bounds)) * min(height, width)
        x = float(rng.uniform(radius + 1, width - radius - 1))
        y = float(rng.uniform(radius + 1, height - radius - 1))
        if cover is not None:
            turn = float(rng.uniform(0, 2 * np.pi))
            apart = float(rng.uniform(0.75, 1.0)) * max(radius, cover.radius)
            x, y = cover.x + apart * np.cos(turn), cover.y + apart * np.sin(turn)
            if not (radius < x < width - radius and radius < y < height - radius):
                continue
        free = (
            np.hypot(x - other.x, y - other.y) > 1.08 * (radius + other.radius)
            for other in shapes
            if other is not cover
        )
        if all(free):
            return x, y, radius
    return None


# --- painting ----------------------------------------------------------------------------------


def paint(scene: Scene) -> tuple[NDArray[np.uint8], Bools, NDArray[np.int64]]:
    """Draw a scene.

    Returns:
        The image (H, W, 3), the visible mask of each shape (P, H, W), and how many pixels each
        would cover if nothing lay in front of it (P,).
    """
    rng = np.random.default_rng(scene.seed)
    canvas = _background(rng, scene)
    masks = np.zeros((len(scene.shapes), scene.height, scene.width), dtype=bool)
    whole = np.zeros(len(scene.shapes), dtype=np.int64)
    for index, shape in enumerate(scene.shapes):
        top, bottom = _span(shape.y, shape.radius, scene.height)
        left, right = _span(shape.x, shape.radius, scene.width)
        distance = signed_distance(shape, *np.mgrid[top:bottom, left:right])
        fill = np.asarray(shape.rgb, dtype=np.float64)
        light = 1 + rng.uniform(0, 0.14) * np.linspace(-1, 1, bottom - top)[:, None, None]
        paint_here = np.broadcast_to(fill * light, (bottom - top, right - left, 3))
        if shape.textured:
            paint_here = paint_here * (0.86 + 0.14 * _stripes(rng, bottom - top, right - left))
        cover = np.clip(0.5 - distance, 0, 1)[..., None]
        window = canvas[top:bottom, left:right]
        canvas[top:bottom, left:right] = window * (1 - cover) + paint_here * cover
        masks[:, top:bottom, left:right] &= distance > 0
        masks[index, top:bottom, left:right] = distance <= 0
        whole[index] = (distance <= 0).sum()
    strength, noise = rng.uniform(0, 5), rng.standard_normal(canvas.shape)
    noise *= strength
    canvas += noise
    return canvas.clip(0, 255, out=canvas).astype(np.uint8), masks, whole


def _span(center: float, radius: float, limit: int) -> tuple[int, int]:
    return max(0, int(center - radius) - 2), min(limit, int(center + radius) + 3)


def signed_distance(shape: Shape, rows: Floats, columns: Floats) -> Floats:
    """Pixels from the outline of a shape at pixel centers, negative inside."""
    x, y = columns + 0.5 - shape.x, rows + 0.5 - shape.y
    cosine, sine = np.cos(shape.angle), np.sin(shape.angle)
    x, y = cosine * x + sine * y, cosine * y - sine * x
    r = shape.radius
    if shape.name == "circle":
        return np.asarray(np.hypot(x, y) - r)
    if shape.name == "ring":
        return np.asarray(np.abs(np.hypot(x, y) - 0.74 * r) - 0.26 * r)
    if shape.name == "square":
        return np.asarray(np.maximum(np.abs(x), np.abs(y)) - 0.78 * r)
    if shape.name == "cross":
        arm = 0.3 * r
        upright = np.maximum(np.abs(x) - arm, np.abs(y) - 0.95 * r)
        return np.asarray(np.minimum(upright, np.maximum(np.abs(y) - arm, np.abs(x) - 0.95 * r)))
    if shape.name == "triangle":
        slope = np.abs(x) * np.sqrt(0.75) - y * 0.5
        return np.asarray(np.maximum(y, slope) - 0.5 * r)
    # A five-pointed star: fold the angle into one half of one point, then one straight edge.
    turn = np.abs((np.arctan2(x, -y) + np.pi / 5) % (2 * np.pi / 5) - np.pi / 5)
    along, across = np.hypot(x, y) * np.cos(turn), np.hypot(x, y) * np.sin(turn)
    inner_x, inner_y = 0.45 * r * np.cos(np.pi / 5), 0.45 * r * np.sin(np.pi / 5)
    edge = np.hypot(r - inner_x, inner_y)
    return np.asarray(((along - r) * inner_y + across * (r - inner_x)) / edge)


def _background(rng: np.random.Generator, scene: Scene) -> Floats:
    """(H, W, 3) a grayish ground, so that no object's color is also the ground's."""
    height, width = scene.height, scene.width
    ground = rng.uniform(25, 245) + rng.uniform(-14, 14, size=3)
    canvas = np.broadcast_to(ground, (height, width, 3)).copy()
    if scene.background == "flat":
        return canvas
    rows, columns = np.mgrid[0:height, 0:width]
    if scene.background == "graded":
        turn = rng.uniform(0, 2 * np.pi)
        ramp = np.cos(turn) * columns / width + np.sin(turn) * rows / height
        return np.asarray(canvas + rng.uniform(10, 45) * ramp[..., None])
    if scene.background == "checks":
        cell = int(rng.integers(6, 16))
        pattern = ((rows // cell + columns // cell) % 2) * 2.0 - 1
    elif scene.background == "stripes":
        pattern = _stripes(rng, height, width)[..., 0]
    else:
        coarse = rng.normal(0, 0.7, (height // 12 + 2, width // 12 + 2))
        pattern = np.kron(coarse, np.ones((12, 12)))[:height, :width]
    return np.asarray(canvas + rng.uniform(12, 30) * pattern[..., None])


def _stripes(rng: np.random.Generator, height: int, width: int) -> Floats:
    """(H, W, 1) values in [-1, 1]."""
    rows, columns = np.mgrid[0:height, 0:width]
    turn, period = rng.uniform(0, np.pi), rng.uniform(5, 12)
    phase = (np.cos(turn) * columns + np.sin(turn) * rows) * 2 * np.pi / period
    return np.asarray(np.sin(phase)[..., None])


# --- words -------------------------------------------------------------------------------------


def relations(scene: Scene, shape: Shape) -> list[str]:
    """Phrases that hold of `shape` and of no other shape of its kind, by another's place."""
    twins = _twins(scene, shape)
    found = []
    for mark in scene.shapes:
        if mark is shape or _twins(scene, mark):
            continue
        for word, _, axis, sign in DIRECTIONS:
            gap = sign * (getattr(mark, axis) - getattr(shape, axis))
            others = [sign * (getattr(mark, axis) - getattr(twin, axis)) for twin in twins]
            if gap > shape.radius and all(other < 0 for other in others):
                found.append(f"{word} the {mark.words}")
    return found


def comparisons(scene: Scene, shape: Shape) -> list[str]:
    """Adjectives that tell `shape` from the others of its kind by their places."""
    twins = _twins(scene, shape)
    return [
        word
        for _, word, axis, sign in DIRECTIONS
        if twins
        and all(
            sign * (getattr(twin, axis) - getattr(shape, axis)) > shape.radius for twin in twins
        )
    ]


def _twins(scene: Scene, shape: Shape) -> list[Shape]:
    return [other for other in scene.shapes if other.kind == shape.kind and other is not shape]


def expressions(scene: Scene, shape: Shape, rng: np.random.Generator) -> list[str]:
    """Referring expressions that name `shape` and nothing else in the scene, in random order."""
    twins = _twins(scene, shape)
    if not twins:
        forms = [f"the {shape.words}", shape.words]
        if scene.kind != "plain":
            forms.append(f"the {shape.size} {shape.words}")
    else:
        forms = [f"the {word} {shape.words}" for word in comparisons(scene, shape)]
        forms += [f"the {shape.words} {relation}" for relation in relations(scene, shape)]
        if all(twin.size != shape.size for twin in twins):
            sized = f"the {shape.size} {shape.words}"
            forms = [sized] if scene.kind == "size" else [*forms, sized]
    return [forms[i] for i in rng.permutation(len(forms))]
