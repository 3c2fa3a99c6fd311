"""Expressions are taught by names in images without the other thing, and cells keep their place."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flmm_core.data.drawn.scenes import make_scene, paint
from recipes.aligning import decoder_inputs
from recipes.phrases import twins, words_for
from recipes.placing import give_room, keep
from recipes.referring import ALIGNED, WEIGHTS, losses, pretrained, read_alone
from recipes.telling import Lessons, caption, without_twins
from recipes.twins import random_twin

GEOMETRY: dict[str, dict[str, Any]] = {
    "qwen": {"pixels": 64},
    "deepseek_vl": {"pixels": 56},
    "llava_next": {"grids": ((1, 1),)},
}
SHIPPED = Path(__file__).parents[1] / "plugins/deepseek_vl/flmm_deepseek_vl/tiny"


@pytest.fixture(scope="module", params=sorted(GEOMETRY))
def taught(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    model, processor = random_twin(request.param, 0, **GEOMETRY[request.param])
    return model, processor, Lessons(processor, 6, 5).batch(0)


def test_each_token_s_thing_is_the_one_that_its_statement_means() -> None:
    seen = 0
    for seed in range(40):
        scene = make_scene((3, seed), ("relation", "size")[seed % 2])
        often = next((n for n, one in enumerate(scene.shapes) if words_for(scene, one)), None)
        pieces, whole = caption(scene, np.random.default_rng(seed), often)
        if whole:
            continue
        statement, things = "", set()
        for piece in pieces:
            statement += piece.text
            things |= {piece.thing} - {None}
            if piece.text.endswith("."):
                for number in things:
                    shape = scene.shapes[number]
                    said = [words.text for words in words_for(scene, shape)]
                    assert any(words in statement for words in said or [shape.words]), statement
                    seen += bool(said)
                assert len(things) < 2
                statement, things = "", set()
    assert seen >= 20


def test_the_thing_alone_of_its_name_is_drawn_where_it_was() -> None:
    scene = make_scene((3, 0), "relation")
    thing = next(n for n, one in enumerate(scene.shapes) if twins(scene, one))
    fewer = without_twins(scene, thing)
    left = [one for one in fewer.shapes if one.kind == scene.shapes[thing].kind]
    assert left == [scene.shapes[thing]]
    place = fewer.shapes.index(left[0])
    np.testing.assert_array_equal(paint(scene)[1][thing], paint(fewer)[1][place])
    others = [one for one in scene.shapes if one.kind != left[0].kind]
    assert [one for one in fewer.shapes if one is not left[0]] == others


def test_names_are_read_without_any_image(taught: Any) -> None:
    model, processor, lesson = taught
    found = []
    for pixels in (lesson.inputs["pixel_values"], lesson.inputs["pixel_values"].flip(0)):
        seen = replace(lesson, inputs={**lesson.inputs, "pixel_values": pixels})
        with torch.no_grad():
            given = decoder_inputs(model, seen.inputs)
            texts = ["the red ring", "the blue star"]
            found.append(read_alone(model, processor.tokenizer, given, seen, texts, 0))
    assert found[0].keys() == set(ALIGNED)
    for layer, query in found[0].items():
        torch.testing.assert_close(query, found[1][layer])
        assert not torch.allclose(query[:, 0], query[:, 1], atol=1e-3)


def test_all_losses_are_learned_from_one_forward(taught: Any) -> None:
    model, processor, lesson = taught
    biases = torch.zeros(len(ALIGNED), requires_grad=True)
    parts, figures = losses(model, processor.tokenizer, biases, lesson, 0)
    assert parts.keys() == WEIGHTS.keys()
    assert all(torch.isfinite(part) and part > 0 for part in parts.values())
    assert {"names_3", "agree_3", "tell_3"} <= figures.keys()
    parts["tell"].backward()  # type: ignore[no-untyped-call]
    towers = [v for n, v in model.named_parameters() if "patch_embed" in n and "weight" in n]
    assert all(v.grad.abs().sum() > 0 for v in towers)
    model.zero_grad()


def unexplained(states: Tensor, side: int) -> float:
    """What a linear probe leaves of rows and columns; (B, side², D), a quarter held out."""
    at = torch.stack(torch.meshgrid(*[torch.arange(side) * 1.0] * 2, indexing="ij"), -1)
    goal = at.reshape(1, -1, 2).expand(len(states), -1, -1).double()
    states = torch.cat([states, torch.ones(*states.shape[:2], 1)], 2).double()
    fit = len(states) * 3 // 4
    known, rest = states[:fit].flatten(0, 1), states[fit:].flatten(0, 1)
    weights = torch.linalg.lstsq(known, goal[:fit].flatten(0, 1)).solution
    error = rest @ weights - goal[fit:].flatten(0, 1)
    return float((error.std(0) / goal[0].std(0)).max())


def test_with_room_every_layer_knows_the_place_and_captions_stay() -> None:
    model, processor = random_twin("deepseek_vl", 0)
    model.load_state_dict(pretrained("deepseek_vl", SHIPPED))
    lesson = Lessons(processor, 16, 5).batch(0)
    cells = lesson.inputs["input_ids"] == model.config.image_token_id

    def look() -> tuple[float, list[float]]:
        with torch.no_grad():
            out = model(**lesson.inputs, labels=lesson.labels, output_hidden_states=True)
        states = [layer[cells].unflatten(0, (16, -1)) for layer in out.hidden_states[:-1]]
        return float(out.loss), [unexplained(layer, 14) for layer in states]

    before, lost = look()
    room = give_room(model, 1, lambda: model(**lesson.inputs))
    after, known = look()
    assert min(lost) > 0.7
    assert max(known) < 0.35
    assert abs(after - before) < 0.5
    with torch.no_grad():
        for value in model.parameters():
            value += 0.01 * torch.randn_like(value)
    keep(room)
    assert max(look()[1]) < 0.35
