"""Ramps through the real processor: where on the image each pixel element was resampled from.

Per element of a pixel tensor, (ramp - black) / (white - black) is the coordinate at which the
processor read the image, whatever the normalization and the layout. Where black and white give the
same value, the element is padding, whatever its color.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import FlmmError, UsageError
from flmm_core.pipeline.backbone.conversation import named_token, prompt_text, user_turns
from flmm_core.pipeline.backbone.geometry.levels import Levels, is_rounded
from flmm_core.pipeline.backbone.geometry.limits import Limits
from flmm_core.pipeline.backbone.geometry.refused import one_line, refuse
from flmm_core.pipeline.backbone.tokens import encode

GOLDEN = 0.618034
"""Multiples of it, modulo 1, are spread evenly."""


@dataclass(frozen=True)
class Elements:
    """One pixel tensor.

    Attributes:
        values: float64, of the shape that the model takes; differs from element to element.
        real: bool, of the same shape; false is padding.
        y: float32, of the same shape; the coordinate, 0 at the top and 1 at the bottom.
        x: The same from left to right.
    """

    values: Tensor
    real: Tensor
    y: Tensor
    x: Tensor


@dataclass(frozen=True)
class Encoded:
    """An image of one size as the model takes it.

    Attributes:
        ids: (S,) token ids.
        others: What the model takes beside the pixels, with a batch dimension of 1 on the tokens.
        pixels: By keyword.
    """

    ids: Tensor
    others: Mapping[str, Tensor]
    pixels: Mapping[str, Elements]


class Ramps:
    """The images of a processor."""

    def __init__(self, processor: Any) -> None:
        """Nothing is encoded yet."""
        self.processor = processor
        self._levels: Levels | None = None

    def encode(self, image_hw: tuple[int, int], limits: Limits) -> Encoded:
        """Encode images of one size that differ in nothing but their content.

        Raises:
            GeometryRefused: Shapes or tokens change with the content; there are no pixels.
            DataError: The processor rejects images of this size.
        """
        text = prompt(self.processor)
        found: list[dict[str, Tensor]] = []
        for image in _images(image_hw):
            found.append(self._encode(text, image))
            _check_same(found[0], found[-1])
            limits.check()
        black, white, ramp_y, ramp_x = found[:4]
        floats = [key for key, value in black.items() if value.is_floating_point()]
        keys = [key for key in floats if not torch.equal(black[key], white[key])]
        if not keys:
            raise refuse("The processor gives no tensor that depends on the image.")
        levels = None
        if all(is_rounded(ramp_y[key]) for key in keys):
            levels = self._measured_levels(text, keys)
            limits.check()
        whole = black, white, ramp_y, ramp_x
        pixels = {key: _elements([each[key] for each in whole], levels) for key in keys}
        others = {
            key: value.double() if key in floats else value
            for key, value in black.items()
            if key not in keys
        }
        return Encoded(black["input_ids"][0], others, pixels)

    def _encode(self, text: str, image: Image.Image) -> dict[str, Tensor]:
        """All that the model takes, with a batch dimension of 1 on the tokens."""
        try:
            given = self.processor, text, [image], lambda same: same, "measured"
            tokens, tensors = encode(*given)
        except FlmmError:
            raise
        except Exception as error:  # each processor has its own ways to fail
            raise refuse(f"The processor cannot be run: {one_line(error)}") from error
        return {**{key: value[None] for key, value in tokens.items()}, **tensors}

    def _measured_levels(self, text: str, keys: Sequence[str]) -> Levels:
        if self._levels is None:
            self._levels = Levels(
                lambda gray: [
                    value for key, value in self._encode(text, gray).items() if key in keys
                ]
            )
        return self._levels


def prompt(processor: Any) -> str:
    """A user's turn with one image as the model reads it, or the bare image without a template."""
    try:
        return prompt_text(processor, user_turns("hi", None))
    except UsageError:
        image = named_token(processor, "image_token")
        if image is None:
            raise
        return f"{image}hi"


def _images(image_hw: tuple[int, int]) -> Iterator[Image.Image]:
    """Black, white, two ramps from 0 to 255 (downwards, to the right) and noise."""
    height, width = image_hw
    yield Image.new("RGB", (width, height), (0, 0, 0))
    yield Image.new("RGB", (width, height), (255, 255, 255))
    yield Image.fromarray(np.ascontiguousarray(_ramp(height, width).transpose(1, 0, 2)))
    yield Image.fromarray(_ramp(width, height))
    noise = np.random.default_rng(0).integers(30, 226, (height, width, 3), dtype=np.uint8)
    yield Image.fromarray(noise)


def _ramp(length: int, across: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """(across, length, 3), dithered across so that means are finer than steps of 1/255."""
    values = (np.arange(length, dtype=np.float32)[:, None] + 0.5) / length * 255  # (length, 1)
    offsets = np.arange(across)[:, None] * GOLDEN + np.arange(3) / 3  # (across, 3)
    return (values + (offsets % 1).astype(np.float32)[:, None]).astype(np.uint8)


def _check_same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> None:
    for key, value in one.items():
        if key not in other or value.shape != other[key].shape:
            raise refuse(f"The shape of '{key}' depends on what the image shows.")
        if not value.is_floating_point() and not torch.equal(value, other[key]):
            raise refuse(f"The values of '{key}' depend on what the image shows.")


def _elements(given: Sequence[Tensor], levels: Levels | None) -> Elements:
    """Of black, white and both ramps; `white` and the ramps are used up."""
    black, white, ramp_y, ramp_x = (each.float() for each in given)
    span = white.sub_(black)
    real = span.abs() > 1e-6
    values = torch.rand(black.shape, generator=torch.Generator().manual_seed(0))
    values = values.mul_(0.6).add_(0.2).mul_(span).add_(black).double()
    span.masked_fill_(~real, 1.0)
    y, x = (each.sub_(black).div_(span) for each in (ramp_y, ramp_x))
    if levels:
        y, x = levels.undo(y), levels.undo(x)
    return Elements(values, real, y, x)
