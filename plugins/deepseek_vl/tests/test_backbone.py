from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core import Backbone, DataError, UsageError
from flmm_core.testing import load_for_checks
from flmm_core.testing.probes import CAPTION, picture, repainted_cells
from flmm_deepseek_vl import SPEC
from flmm_deepseek_vl.backbone import DeepseekVLBackbone


@pytest.mark.parametrize("hw", [(480, 640), (300, 1500), (1500, 300), (333, 517)], ids=str)
def test_repainted_cell_changes_most(full_size: Backbone, hw: tuple[int, int]) -> None:
    pairs = repainted_cells(full_size, picture(*hw), 0)
    assert pairs
    assert all(painted == changed for painted, changed in pairs)


@pytest.mark.parametrize("hw", [(112, 112), (120, 360), (400, 150), (61, 97)], ids=str)
def test_repainted_cell_changes_most_in_the_twin(twin: Path, hw: tuple[int, int]) -> None:
    pairs = repainted_cells(load_for_checks(SPEC, twin), picture(*hw), 0)
    assert pairs
    assert all(painted == changed for painted, changed in pairs)


def test_images_are_resized_by_pillow(full_size: Backbone) -> None:
    assert type(full_size.processor.image_processor).__name__ == "DeepseekVLImageProcessorPil"


def test_a_processor_with_another_number_of_tokens_is_refused(full_size: Backbone) -> None:
    backbone = load_for_checks(SPEC, full_size.source)
    backbone.processor.num_image_tokens = 575
    with pytest.raises(DataError, match="holds 575 image tokens; expected 576"):
        backbone.prepare(picture(48, 64), CAPTION, name="a")


@pytest.mark.parametrize("option", ["max_pixels", "resizes"])
def test_an_unknown_option_is_refused(full_size: Backbone, option: str) -> None:
    with pytest.raises(UsageError, match=f"Unknown option '{option}'"):
        DeepseekVLBackbone.load(SPEC, full_size.source, options={option: 8})
