"""Plain scenes by another painter: flat colors, other sizes of images and of shapes.

A head that lives off one renderer's shading, edges or sizes fails here. Shapes are polygons and
ellipses of Pillow's, without noise, light or anti-aliasing.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from flmm_core.data.drawn.scenes import Bools, Scene, Shape, make_scene

SIDES = (160, 200, 240, 320)
RADIUS = (0.07, 0.24)
COLORS = {
    "red": (255, 0, 0),
    "green": (0, 160, 0),
    "blue": (0, 0, 255),
    "yellow": (255, 230, 0),
    "purple": (128, 0, 160),
    "orange": (255, 140, 0),
}
GROUNDS = ((255, 255, 255), (245, 245, 235), (30, 30, 30), (128, 128, 128))


def make_flat_scene(seed: tuple[int, ...]) -> Scene:
    """A plain scene in this painter's colors and sizes."""
    scene = make_scene(seed, "plain", sides=SIDES, count=(1, 4), radius=RADIUS)
    shapes = tuple(replace(shape, rgb=COLORS[shape.color]) for shape in scene.shapes)
    return replace(scene, shapes=shapes)


def paint_flat(scene: Scene) -> tuple[NDArray[np.uint8], Bools, NDArray[np.int64]]:
    """As `flmm_core.data.drawn.scenes.paint`."""
    ground = GROUNDS[scene.seed % len(GROUNDS)]
    canvas = Image.new("RGB", (scene.width, scene.height), ground)
    masks = np.zeros((len(scene.shapes), scene.height, scene.width), dtype=bool)
    for index, shape in enumerate(scene.shapes):
        stencil = Image.new("1", canvas.size)
        _stamp(ImageDraw.Draw(stencil), shape)
        canvas.paste(shape.rgb, mask=stencil)
        masks[:, np.asarray(stencil)] = False
        masks[index] = np.asarray(stencil)
    return np.asarray(canvas), masks, masks.sum((1, 2))


def _stamp(draw: ImageDraw.ImageDraw, shape: Shape) -> None:
    x, y, r = shape.x, shape.y, shape.radius
    if shape.name in ("circle", "ring"):
        draw.ellipse((x - r, y - r, x + r, y + r), fill=1)
        if shape.name == "ring":
            hole = 0.55 * r
            draw.ellipse((x - hole, y - hole, x + hole, y + hole), fill=0)
        return
    if shape.name == "star":
        radii = [r, 0.42 * r] * 5
        corners = [(k * math.pi / 5 - math.pi / 2, radius) for k, radius in enumerate(radii)]
        points = [(radius * math.cos(turn), radius * math.sin(turn)) for turn, radius in corners]
    elif shape.name == "triangle":
        points = [(0, -r), (0.87 * r, 0.5 * r), (-0.87 * r, 0.5 * r)]
    elif shape.name == "square":
        points = [(-0.75 * r, -0.75 * r), (0.75 * r, -0.75 * r), (0.75 * r, 0.75 * r)]
        points.append((-0.75 * r, 0.75 * r))
    else:
        a, b = 0.28 * r, 0.95 * r
        points = [(-a, -b), (a, -b), (a, -a), (b, -a), (b, a), (a, a)]
        points += [(-u, -v) for u, v in points]
    cosine, sine = math.cos(shape.angle), math.sin(shape.angle)
    draw.polygon(
        [(x + cosine * u - sine * v, y + sine * u + cosine * v) for u, v in points], fill=1
    )
