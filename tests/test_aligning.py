"""What the alignment recipe compares: names that have not seen the image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from flmm_core.data.drawn.scenes import COLORS, SHAPES
from recipes.aligning import (
    WEIGHTS,
    Fits,
    aligned_heads,
    decoder_inputs,
    find_names,
    losses,
    truths,
    who_sees_whom,
)
from recipes.pretrain import Batch, Batches, Stage
from recipes.twins import random_twin

GEOMETRY: dict[str, dict[str, Any]] = {
    "qwen": {"pixels": 64},
    "deepseek_vl": {"pixels": 56},
    "llava_next": {"grids": ((1, 1),)},
}


@pytest.fixture(scope="module", params=sorted(GEOMETRY))
def twin(request: pytest.FixtureRequest) -> tuple[Any, Any, Batch]:
    model, processor = random_twin(request.param, 0, **GEOMETRY[request.param])
    stage = Stage(1, 4, "all", GEOMETRY[request.param], shared=0.75, absent=2)
    return model, processor, Batches(processor, stage, 5).batch(0)


def run_twice(model: Any, batch: Batch) -> tuple[torch.Tensor, int]:
    """States of the sequence and of the blind caption behind it, and the sequence's length."""
    given = decoder_inputs(model, batch.inputs)
    ids, features = batch.inputs["input_ids"], given["inputs_embeds"]
    size, start = ids.shape[1], batch.start
    places = given.get("position_ids")
    places = torch.arange(size)[None] if places is None else places
    mask = who_sees_whom(
        ids == model.config.image_token_id, batch.inputs["attention_mask"].bool(), size - start
    )
    with torch.no_grad(), aligned_heads(model.get_decoder()):
        states = model.get_decoder()(
            inputs_embeds=torch.cat([features, features[:, start:]], 1),
            position_ids=torch.cat([places, places[..., start:]], -1),
            attention_mask=mask,
            use_cache=False,
        ).last_hidden_state
    return states, size


def test_the_caption_that_sees_is_as_without_the_blind_one(twin: Any) -> None:
    model, _, batch = twin
    states, size = run_twice(model, batch)
    with torch.no_grad():
        usual = model.model(**batch.inputs, use_cache=False).last_hidden_state
    there = batch.inputs["attention_mask"].bool()
    torch.testing.assert_close(states[:, :size][there], usual[there], atol=1e-4, rtol=1e-4)


def test_the_blind_caption_is_the_same_before_any_image(twin: Any) -> None:
    model, _, batch = twin
    states, size = run_twice(model, batch)
    inputs = {**batch.inputs, "pixel_values": batch.inputs["pixel_values"].flip(0)}
    others, _ = run_twice(model, batch._replace(inputs=inputs))
    there = batch.inputs["attention_mask"][:, batch.start :].bool()
    torch.testing.assert_close(states[:, size:][there], others[:, size:][there])
    last = slice(batch.start, size)
    assert not torch.allclose(states[:, last][there], others[:, last][there], atol=1e-3)


def test_names_are_found_with_their_color_and_shape(twin: Any) -> None:
    _, processor, _ = twin
    texts = ["red ring at the top. the blue star on the left.", "a small green cross, a ring"]
    tokens = [processor.tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    longest = max(map(len, tokens))
    ids = torch.tensor([row + [0] * (longest - len(row)) for row in tokens])
    names = find_names(processor.tokenizer, ids)
    kinds = [(list(COLORS)[pair // 6], SHAPES[pair % 6]) for pair in names.pair.tolist()]
    assert sorted(zip(names.sample.tolist(), kinds, strict=True)) == [
        (0, ("blue", "star")),
        (0, ("red", "ring")),
        (1, ("green", "cross")),
    ]
    words = processor.tokenizer.convert_ids_to_tokens(ids[names.sample, names.column].tolist())
    assert [word.lstrip("Ġ") for word in words] == [kind[1] for kind in kinds]


def test_all_parts_are_learned_from_one_forward(twin: Any) -> None:
    model, processor, batch = twin
    torch.manual_seed(0)
    parts, figures = losses(model, processor.tokenizer, Fits(), batch)
    assert parts.keys() == WEIGHTS.keys()
    assert all(torch.isfinite(part) and part > 0 for part in parts.values())
    assert {"color", "shape"} <= figures.keys()


def test_what_holds_of_a_scene_is_what_its_things_are(twin: Any) -> None:
    _, _, batch = twin
    for row, scene in zip(truths(batch.scenes), batch.scenes, strict=True):
        kinds = {(list(COLORS)[i // 6], SHAPES[i % 6]) for i in row[12:].nonzero().flatten()}
        assert kinds == {thing.kind for thing in scene.shapes}
