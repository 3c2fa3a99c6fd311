"""The shipped twins say what is there, and attend to the one thing that is named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from flmm_core.pipeline.backbone.weights import find_source
from flmm_core.plugins import load_backbones, load_class
from recipes.measure import captions, focus, told_apart
from recipes.twins import MAKERS, TOWER, build_twin

SHIPPED = {
    "qwen": ("qwen", "tiny"),
    "deepseek_vl": ("deepseek_vl", "tiny"),
    "llava_next": ("llava_next", "tiny"),
    "qwen3_vl": ("qwen", "3-tiny"),
}
"""Backbone and model by the recipe's name of the family."""


@pytest.fixture(scope="module", params=SHIPPED)
def twin(request: pytest.FixtureRequest) -> Any:
    backbone, model = SHIPPED[request.param]
    spec = load_backbones().get(backbone)
    return load_class(spec).load(spec, model)


def shipped_folder(family: str) -> Path:
    backbone, model = SHIPPED[family]
    spec = load_backbones().get(backbone)
    return Path(find_source(spec, spec.models[model].source))


@pytest.mark.parametrize("family", SHIPPED)
def test_its_weights_have_the_names_that_every_version_reads(family: str, tmp_path: Path) -> None:
    names = [
        set(safe_open(folder / "model.safetensors", "pt").keys())
        for folder in (shipped_folder(family), build_twin(family, tmp_path))
    ]
    assert names[0] == names[1]
    assert not any(TOWER.match(name) for name in names[0])


@pytest.mark.parametrize("family", SHIPPED)
def test_its_files_are_those_that_the_recipe_writes(family: str, tmp_path: Path) -> None:
    config, processor = MAKERS[family]()
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    for name in ("config.json", "processor_config.json", "tokenizer.json", "chat_template.jinja"):
        texts = [(folder / name).read_text() for folder in (shipped_folder(family), tmp_path)]
        if name == "config.json":
            texts = [json.loads(text) for text in texts]
            for facts in texts:
                for key in ("architectures", "dtype", "transformers_version"):
                    facts.pop(key, None)
        assert texts[0] == texts[1], name


def test_what_it_names_is_there(twin: Any) -> None:
    found = captions(twin, 6)
    assert found["objects_named"] >= 12
    assert found["named_and_there"] >= 0.9


def test_its_best_head_looks_at_what_is_named(twin: Any) -> None:
    assert focus(twin, 8)["best_head_over_area"] >= 4


def test_of_two_things_of_one_color_it_looks_at_the_one_that_is_named(twin: Any) -> None:
    found = told_apart(twin, 8)
    assert found["sharing_a_color"] >= 10
    assert found["told_apart"] >= 0.9  # a twin that looks at colors only: 0.5
