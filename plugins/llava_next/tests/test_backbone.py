from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers

from flmm_core import Backbone, DataError, WeightsError
from flmm_core.testing import load_for_checks
from flmm_core.testing.checks import (
    check_answers,
    check_batch_independence,
    check_trace_equals_eager,
)
from flmm_core.testing.probes import CAPTION, picture, repainted_cells
from flmm_llava_next import SPEC
from flmm_llava_next.backbone import LlavaBackbone
from recipes import twins


@pytest.mark.parametrize("view", [0, 1], ids=["coarse", "fine"])
@pytest.mark.parametrize("hw", [(540, 960), (240, 1200), (1200, 240), (333, 517)], ids=str)
def test_repainted_cell_changes_most(full_size: Backbone, hw: tuple[int, int], view: int) -> None:
    pairs = repainted_cells(full_size, picture(*hw), view)
    assert pairs
    assert all(painted == changed for painted, changed in pairs)


@pytest.mark.parametrize("view", [0, 1], ids=["coarse", "fine"])
@pytest.mark.parametrize("hw", [(168, 168), (120, 360), (400, 150), (90, 97)], ids=str)
def test_repainted_cell_changes_most_in_the_twin(
    twin: Path, hw: tuple[int, int], view: int
) -> None:
    pairs = repainted_cells(load_for_checks(SPEC, twin), picture(*hw), view)
    assert pairs
    assert all(painted == changed for painted, changed in pairs)


def test_images_of_different_numbers_of_tiles_meet_in_a_batch(twin: Path) -> None:
    backbone = load_for_checks(SPEC, twin)
    samples = [backbone.prepare(picture(*hw), CAPTION) for hw in ((60, 300), (168, 168))]
    tiles = [sample.tensors["pixel_values"].shape[1] for sample in samples]
    assert tiles == [3, 5]
    batch = backbone.collate(samples)
    pixels = batch.tensors["pixel_values"]
    assert pixels.shape[:2] == (2, 5)
    assert torch.equal(pixels[0, 3:], torch.zeros_like(pixels[0, 3:]))
    for sample, trace in zip(samples, backbone.trace(batch), strict=True):
        (alone,) = backbone.trace(backbone.collate([sample]))
        torch.testing.assert_close(trace.attention, alone.attention, atol=1e-6, rtol=1e-4)


def test_a_mistral_type_text_model_is_read_like_a_llama(tmp_path: Path) -> None:
    config, processor = twins.PARTS["llava_next"]()
    facts = config.text_config.to_dict()
    for key in ("model_type", "layer_types", "architectures"):
        facts.pop(key, None)
    config.text_config = transformers.MistralConfig(**facts, sliding_window=None)
    model = transformers.LlavaNextForConditionalGeneration(config)
    assert type(model.get_decoder()).__name__ == "MistralModel"
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    backbone = load_for_checks(SPEC, tmp_path)
    for check in (check_trace_equals_eager, check_batch_independence, check_answers):
        check(backbone)


def test_images_are_resized_by_pillow(full_size: Backbone) -> None:
    assert type(full_size.processor.image_processor).__name__ == "LlavaNextImageProcessorPil"


def test_an_image_without_a_fine_view_is_refused(full_size: Backbone) -> None:
    with pytest.raises(DataError) as caught:
        full_size.prepare(picture(1, 300), CAPTION, name="strip")
    assert "strip" in str(caught.value)
    assert "300 x 1 pixels leave a fine view of 48 x 0." in str(caught.value)


def test_a_processor_that_cuts_otherwise_is_refused(twin: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(twin, tmp_path / "twin")
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["image_grid_pinpoints"] = [[84, 168]]
    file.write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="cut images differently"):
        LlavaBackbone.load(SPEC, str(folder))
