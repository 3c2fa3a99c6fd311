from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from flmm_core import Backbone, DataError, UsageError, WeightsError
from flmm_core.testing import load_for_checks
from flmm_core.testing.probes import CAPTION, picture, repainted_cells
from flmm_qwen import SPEC
from flmm_qwen.backbone import QwenBackbone


@pytest.mark.parametrize("hw", [(480, 640), (300, 1500), (1500, 300), (333, 517)], ids=str)
def test_repainted_cell_changes_most(full_size: Backbone, hw: tuple[int, int]) -> None:
    pairs = repainted_cells(full_size, picture(*hw), 0)
    assert pairs
    assert all(painted == changed for painted, changed in pairs)


@pytest.mark.parametrize("hw", [(168, 168), (120, 360), (400, 150), (61, 97)], ids=str)
def test_repainted_cell_changes_most_in_the_twin(twin: Path, hw: tuple[int, int]) -> None:
    pairs = repainted_cells(load_for_checks(SPEC, twin), picture(*hw), 0)
    assert pairs
    assert all(painted == changed for painted, changed in pairs)


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 23 * 17),
        ({"max_pixels": 28 * 28 * 100}, (80, 100)),
        ({"min_pixels": 28 * 28 * 1000}, (1000, 1100)),
        ({"min_pixels": 28 * 28 * 2000}, (2000, 2100)),  # beyond the processor's own maximum
        ({"max_pixels": 28 * 28}, 1),  # below the processor's own minimum
        ({"min_pixels": 28 * 28 * 90, "max_pixels": 28 * 28 * 110}, (80, 110)),
    ],
    ids=str,
)
def test_options_bound_the_number_of_tokens(
    full_size: Backbone, options: dict[str, int], tokens: int | tuple[int, int]
) -> None:
    backbone = QwenBackbone.load(SPEC, full_size.source, options=options)
    (view,) = backbone.prepare(picture(480, 640), CAPTION).views
    low, high = tokens if isinstance(tokens, tuple) else (tokens, tokens)
    assert low <= view.token_index.numel() <= high


def test_options_are_validated(full_size: Backbone) -> None:
    with pytest.raises(UsageError, match="min_pixels 9 exceeds max_pixels 8"):
        QwenBackbone.load(SPEC, full_size.source, options={"min_pixels": 9, "max_pixels": 8})
    with pytest.raises(UsageError, match="Did you mean 'max_pixels'"):
        QwenBackbone.load(SPEC, full_size.source, options={"max_pixel": 8})


def test_images_are_resized_by_pillow(full_size: Backbone) -> None:
    assert type(full_size.processor.image_processor).__name__ == "Qwen2VLImageProcessorPil"


def test_an_image_longer_than_200_to_1_is_refused(full_size: Backbone) -> None:
    with pytest.raises(DataError, match="strip") as caught:
        full_size.prepare(picture(2, 500), CAPTION, name="strip")
    assert "500 x 2 pixels" in str(caught.value)


def test_weights_of_another_family_are_refused(twin: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="qwen2_5_vl"):
        QwenBackbone.load(SPEC, str(tmp_path))


def test_a_config_that_contradicts_itself_is_refused(twin: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(twin, tmp_path / "twin")
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["num_hidden_layers"] += 1  # than layer types are listed
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="Backbone 'qwen' cannot load the model"):
        QwenBackbone.load(SPEC, str(folder))
