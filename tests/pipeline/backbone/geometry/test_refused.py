"""What cannot be measured, or is not so, is refused with the reason, within limits."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from flmm_core.pipeline.backbone.geometry import measured_views
from flmm_core.pipeline.backbone.geometry.grids import Grid
from flmm_core.pipeline.backbone.geometry.limits import Limits
from flmm_core.pipeline.backbone.geometry.measured_views import GeometryRefused, MeasuredGeometry
from recipes.families import REFUSED
from recipes.twins import PARTS

SIZE = (60, 90)


def geometry(**limits: Any) -> MeasuredGeometry:
    return MeasuredGeometry(*PARTS["qwen"](pixels=96), **limits)


@pytest.mark.parametrize(
    ("family", "reason"),
    [
        ("idefics2", "All elements of 'pixel_values' reach several tokens: a resampler"),
        ("aria", "All elements of 'pixel_values' reach several tokens: a resampler"),
        ("mllama", "is given no image tokens in its sequence"),
        ("deepseek_vl_hybrid", "attention of DeepseekVLHybridConfig cannot be switched off"),
    ],
)
def test_families_whose_tokens_are_no_places(family: str, reason: str) -> None:
    config, processor = REFUSED[family]()
    measured = MeasuredGeometry(config, processor)
    with pytest.raises(GeometryRefused, match=reason) as refused:
        measured.at(SIZE)
    first = str(refused.value).splitlines()[0]
    assert first == (
        "Where the tokens of images of 90 x 60 pixels lie cannot be measured for "
        f"'{config.model_type}'."
    )
    with pytest.raises(GeometryRefused, match=reason):
        measured.at(SIZE)


class _ByBrightness(transformers.Qwen2VLImageProcessorPil):
    """Bright images become smaller."""

    def preprocess(self, images: Any, **settings: Any) -> Any:
        (image,) = images if isinstance(images, list) else [images]
        if np.asarray(image).mean() > 200:
            image = image.resize((32, 32))
        return super().preprocess([image], **settings)


class _Flipped(transformers.Qwen2VLImageProcessorPil):
    """Images are turned upside down: no crop or resampling that a box can tell."""

    def preprocess(self, images: Any, **settings: Any) -> Any:
        (image,) = images if isinstance(images, list) else [images]
        return super().preprocess([image.transpose(Image.Transpose.ROTATE_90)], **settings)


def test_shapes_that_depend_on_what_an_image_shows() -> None:
    config, processor = PARTS["qwen"](pixels=96)
    processor.image_processor = _ByBrightness.from_dict(processor.image_processor.to_dict())
    with pytest.raises(GeometryRefused, match="depends on what the image shows"):
        MeasuredGeometry(config, processor).at(SIZE)


def test_a_turned_image_is_measured_as_it_lies() -> None:
    """The grid of a turned image: token 0 is at the image's right, and the next one below it."""
    config, processor = PARTS["qwen"](pixels=96)
    plain = MeasuredGeometry(config, processor).at(SIZE[::-1]).views[0].token_index
    processor.image_processor = _Flipped.from_dict(processor.image_processor.to_dict())
    turned = MeasuredGeometry(config, processor).at(SIZE).views[0].token_index
    assert turned.tolist() == plain.T.flip(1).tolist()


def _swapped(grid: Grid) -> Grid:
    tokens = grid.tokens.clone()
    tokens[0, 0], tokens[0, 1] = grid.tokens[0, 1], grid.tokens[0, 0]
    return replace(grid, tokens=tokens)


def _moved(grid: Grid, cells: float) -> Grid:
    y0, x0, y1, x1 = grid.box
    shift = cells * (x1 - x0) / grid.tokens.shape[1]
    return replace(grid, box=(y0, x0 + shift, y1, x1 + shift))


@pytest.mark.parametrize(
    "wrong",
    [
        _swapped,
        lambda grid: replace(grid, tokens=grid.tokens.flip(0)),
        lambda grid: replace(grid, tokens=grid.tokens.roll(1, 1)),
        lambda grid: replace(grid, tokens=grid.tokens.reshape(grid.tokens.shape[::-1])),
        lambda grid: replace(grid, tokens=grid.tokens[:, :-1]),
        lambda grid: _moved(grid, 0.15),
        lambda grid: _moved(grid, -1.0),
    ],
    ids=["swapped", "flipped", "rolled", "reshaped", "cut", "moved", "moved by a cell"],
)
def test_a_wrong_grid_is_not_proved(
    wrong: Callable[[Grid], Grid], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = measured_views.assemble
    monkeypatch.setattr(
        measured_views, "assemble", lambda *given: [wrong(grid) for grid in right(*given)]
    )
    with pytest.raises(GeometryRefused, match=r"outside their cells|off its center"):
        geometry().at(SIZE)


def test_the_limit_of_time() -> None:
    with pytest.raises(GeometryRefused, match="more than 0 seconds of CPU time"):
        geometry(seconds=0.001).at(SIZE)


def test_the_limit_of_memory_holds_before_a_product_is_allocated() -> None:
    column = torch.zeros(1).expand(300_000, 1)  # of the product, 360 GB
    with (
        Limits(memory=1 << 30),
        pytest.raises(GeometryRefused, match=r"more than 1\.0 GiB of memory"),
    ):
        torch.mm(column, column.T)


def test_a_model_that_cannot_be_measured_in_time_ends() -> None:
    began = time.process_time()
    with pytest.raises(GeometryRefused, match="more than 1 seconds of CPU time"):
        MeasuredGeometry(*REFUSED["got_ocr2"](), seconds=1.0).at((400, 400))
    assert time.process_time() - began < 15
