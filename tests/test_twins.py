"""The shipped twins say what is there, and attend to the one thing that is named."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open

from flmm_core import TOY_DEFAULTS, BackboneSpec
from flmm_core.pipeline.backbone.weights import find_source
from flmm_core.plugins import load_backbones, load_class
from recipes.measure import captions, focus, told_apart
from recipes.of_two import measure, shares
from recipes.twins import MAKERS, RENAMED, TOWER, build_twin
from tests.examples import example

SHIPPED = {
    "qwen": ("qwen", "tiny"),
    "deepseek_vl": ("deepseek_vl", "tiny"),
    "llava_next": ("llava_next", "tiny"),
    "qwen3_vl": ("qwen", "3-tiny"),
    "idefics3": ("examples", "tiny"),
}
"""Backbone and model by the recipe's name of the family."""
TAUGHT = {"qwen", "deepseek_vl", "llava_next"}
"""Those that know place and size, which is read where a phrase ends."""
BYTES = 4_000_000


def shipped(family: str) -> tuple[BackboneSpec, str]:
    backbone, model = SHIPPED[family]
    if backbone != "examples":
        return load_backbones().get(backbone), model
    example(family)  # a distribution of its own, which is not installed here
    return importlib.import_module(f"flmm_{family}").SPEC, model


def shipped_folder(family: str) -> Path:
    spec, model = shipped(family)
    return Path(find_source(spec, spec.models[model].source))


@pytest.fixture(scope="module", params=SHIPPED)
def twin(request: pytest.FixtureRequest) -> Any:
    spec, model = shipped(request.param)
    return load_class(spec).load(spec, model)


@pytest.mark.parametrize("family", SHIPPED)
def test_it_is_small_and_trained_on_drawn_shapes_by_default(family: str) -> None:
    spec, model = shipped(family)
    named = {} if family in TAUGHT else {"head.pool": "mean"}
    assert spec.models[model].defaults == {**TOY_DEFAULTS, **named}
    assert sum(file.stat().st_size for file in shipped_folder(family).iterdir()) < BYTES


@pytest.mark.parametrize("family", SHIPPED)
def test_its_weights_have_the_names_that_every_version_reads(family: str, tmp_path: Path) -> None:
    names = [
        set(safe_open(folder / "model.safetensors", "pt").keys())
        for folder in (shipped_folder(family), build_twin(family, tmp_path))
    ]
    assert names[0] == names[1]
    vision = json.loads((tmp_path / "config.json").read_text())["vision_config"]["model_type"]
    assert vision not in RENAMED or not any(TOWER.match(name) for name in names[0])


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


@pytest.mark.parametrize("family", sorted(TAUGHT))
def test_of_two_things_of_one_name_it_looks_at_the_one_that_is_meant(family: str) -> None:
    spec, model = shipped(family)
    found = measure(load_class(spec).load(spec, model), 12)
    for kind in ("relation", "side", "size"):
        share = shares(found[kind][:, 0])  # of the token that ends the expression
        best = share[::2].mean(0).argmax()
        assert len(share) >= 10
        assert share[1::2, best].mean() >= 0.75, kind  # by its name alone: 0.5
