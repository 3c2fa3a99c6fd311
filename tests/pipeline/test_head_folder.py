"""A head's folder of today and of before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from flmm_core.errors import WeightsError
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import read_info, read_weights
from flmm_core.pipeline.types import VlmShape
from tests.flows import fresh_grounder

FORMAT_1 = """
{
  "format": 1,
  "flmm": "0.1.0",
  "recipe": {
    "backbone": "qwen",
    "model": "tiny",
    "options": {"min_pixels": null, "max_pixels": null},
    "prompt": "Please give me a description of the image.",
    "pool": "mean",
    "base_channels": 16,
    "enlarge_to": 32,
    "paper_rounding": false,
    "refiner": "sam:tiny",
    "mask": true,
    "box": true,
    "text": false,
    "multimask": true,
    "half": false,
    "channels": [1, 4]
  },
  "vlm": {"layers": 4, "heads": 4, "hidden_size": 128, "views": ["image"]},
  "steps": 12,
  "data": ["shapes@train"]
}
"""
"""As the version wrote it that had no refiner plugins."""


def test_a_head_of_format_1_is_migrated(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(FORMAT_1)
    info = read_info(tmp_path)
    assert info.recipe == Recipe(
        backbone="qwen",
        options={"min_pixels": None, "max_pixels": None},
        base_channels=16,
        enlarge_to=32,
        channels=(1, 4),
        refiner="sam",
        refiner_options={
            "size": "tiny", "mask": True, "box": True, "text": False, "multimask": True,
            "half": False,
        },
        caption_mode="pieces",
    )  # fmt: skip
    assert info.vlm == VlmShape(4, 4, 128, ("image",))
    assert info.facts == {"steps": 12, "data": ["shapes@train"]}
    (tmp_path / "config.json").write_text(FORMAT_1.replace("sam:tiny", "none"))
    assert (read_info(tmp_path).recipe.refiner, read_info(tmp_path).recipe.refiner_options) == (
        "none", {},
    )  # fmt: skip


def test_a_head_that_knows_no_caption_mode_was_trained_on_pieces(tmp_path: Path) -> None:
    shape = {"layers": 4, "heads": 4, "hidden_size": 128, "views": ["image"]}
    head = {"format": 2, "flmm": "0.2.0", "recipe": {"backbone": "qwen"}, "vlm": shape}
    (tmp_path / "config.json").write_text(json.dumps(head))
    assert read_info(tmp_path).recipe.caption_mode == "pieces"


def test_another_prompt_and_system_message(random_twin: Path, tmp_path: Path) -> None:
    folder = fresh_grounder(Recipe("qwen", str(random_twin), base_channels=4)).save_pretrained(
        tmp_path / "head", reads="something"
    )
    grounder = Grounder.from_pretrained(folder, prompt="What is there?", system="Be brief.")
    reads = grounder.backbone.rendered_prompt()
    assert reads.index("Be brief.") < reads.index("What is there?") < reads.index("{caption}")
    assert grounder.info.facts["reads"] == reads


def test_what_is_saved_is_loaded_and_saved_again(random_twin: Path, tmp_path: Path) -> None:
    recipe = Recipe("qwen", str(random_twin), base_channels=4, enlarge_to=16)
    first = fresh_grounder(recipe)
    folder = first.save_pretrained(tmp_path / "head", steps=3)
    second = Grounder.from_pretrained(folder)
    assert second.info.recipe == recipe
    assert second.info.facts == {"steps": 3}
    state = read_weights(folder)
    assert state.keys() == first.head.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in second.head.state_dict().items())
    again = second.save_pretrained(tmp_path / "again")
    for name in ("config.json", "model.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("content", ['{"format": 5}', "[]", "{}", "null", '{"format": 4}', "{"])
def test_a_foreign_configuration_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(WeightsError, match="does not describe a head of flmm"):
        read_info(tmp_path)


def test_a_newer_format_names_those_that_are_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"format": 5}))
    with pytest.raises(WeightsError, match="its format is 5, this version reads 1 to 4"):
        read_info(tmp_path)
