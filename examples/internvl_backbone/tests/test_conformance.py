from __future__ import annotations

from pathlib import Path

import pytest
from flmm_internvl import SPEC
from make_tiny import make_tiny

from flmm_core import Backbone
from flmm_core.testing import load_for_checks
from flmm_core.testing.probes import CAPTION, picture
from flmm_core.testing.suite import BackboneConformance


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny(tmp_path_factory.mktemp("tiny"))


class TestInternVL(BackboneConformance):
    spec = SPEC

    @pytest.fixture(scope="module")
    @classmethod
    def model(cls, tiny: Path) -> Path:
        return tiny


@pytest.fixture(scope="module")
def backbone(tiny: Path) -> Backbone:
    return load_for_checks(SPEC, tiny)


@pytest.mark.parametrize(
    ("hw", "shape"),
    [((40, 40), None), ((60, 130), (4, 8)), ((300, 100), (12, 4)), ((500, 750), (8, 12))],
    ids=str,
)
def test_an_image_has_as_many_tiles_as_the_processor_cuts(
    backbone: Backbone, hw: tuple[int, int], shape: tuple[int, int] | None
) -> None:
    inputs = backbone.prepare(picture(*hw), CAPTION)
    coarse, fine = inputs.views
    tiles = inputs.prefix.image["pixel_values"].shape[0]
    assert coarse.token_index.shape == (4, 4)
    assert fine.token_index.shape == (shape or (4, 4))
    assert tiles == (1 if shape is None else fine.token_index.numel() // 16 + 1)


def test_the_whole_image_stands_for_tiles_that_are_not_there(backbone: Backbone) -> None:
    coarse, fine = backbone.prepare(picture(40, 40), CAPTION).views
    assert coarse.token_index.equal(fine.token_index)
