from __future__ import annotations

from itertools import chain

import pytest

from flmm_core import Backbone
from flmm_core.testing.probes import picture
from flmm_qwen import views

SHAPES = [
    (480, 640),
    (640, 480),
    (200, 1000),
    (1000, 200),
    (333, 517),
    (1, 1),
    (1, 150),
    (3, 300),
    (300, 3),
    (29, 27),
    (3000, 4000),
]


@pytest.mark.parametrize("hw", SHAPES, ids=str)
def test_grid_has_the_tokens_that_the_processor_writes(
    full_size: Backbone, hw: tuple[int, int]
) -> None:
    processor = full_size.processor
    encoded = processor(text=processor.image_token, images=picture(*hw), return_tensors="pt")
    tokens = int((encoded["input_ids"] == full_size.image_token_id).sum())
    h, w = views.grid_shape(encoded["image_grid_thw"][0].tolist(), merge_size=2)
    assert h * w == tokens > 0
    assert list(chain.from_iterable(views.token_rows((h, w)))) == list(range(tokens))


@pytest.mark.parametrize("hw", [(480, 640), (200, 1000), (1000, 200), (333, 517)], ids=str)
def test_grid_is_as_long_as_the_image(full_size: Backbone, hw: tuple[int, int]) -> None:
    image = full_size.processor.image_processor(images=picture(*hw), return_tensors="pt")
    h, w = views.grid_shape(image["image_grid_thw"][0].tolist(), merge_size=2)
    assert h == pytest.approx(hw[0] / 28, abs=0.51)
    assert w == pytest.approx(hw[1] / 28, abs=0.51)


def test_merging_three_by_two() -> None:
    assert views.grid_shape([1, 6, 4], merge_size=2) == (3, 2)
    assert views.token_rows((3, 2)) == [[0, 1], [2, 3], [4, 5]]


@pytest.mark.parametrize("grid", [[2, 6, 4], [1, 5, 4], [1, 6, 3]])
def test_a_grid_that_cannot_be_merged_is_refused(grid: list[int]) -> None:
    with pytest.raises(ValueError, match=r"frame|merge"):
        views.grid_shape(grid, merge_size=2)
