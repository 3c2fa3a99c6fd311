"""Expressions are taught by names in images without the other thing, and cells keep their place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flmm_core.data.drawn.scenes import make_scene, paint
from recipes import aligning
from recipes.phrases import twins, words_for
from recipes.placing import give_room, keep
from recipes.referring import KEYS, LAYERS, NAMES, SAID, WEIGHTS, losses, optimizers, pretrained
from recipes.statements import telling, texts
from recipes.telling import Lessons, lesson, look, names_of, prompts, run, without_twins
from recipes.twins import random_twin

GEOMETRY: dict[str, dict[str, Any]] = {
    "qwen": {"pixels": 64},
    "deepseek_vl": {"pixels": 56},
    "llava_next": {"grids": ((1, 1),)},
}
PLUGINS = Path(__file__).parents[1] / "plugins"


@pytest.fixture(scope="module", params=sorted(GEOMETRY))
def taught(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return random_twin(request.param, 0, **GEOMETRY[request.param])


def test_each_token_s_thing_is_the_one_that_its_statement_means() -> None:
    seen = 0
    for seed in range(40):
        scene = make_scene((3, seed), ("relation", "size")[seed % 2])
        for pieces in texts(scene, np.random.default_rng(seed))[:-1]:
            statement, things = "", set()
            for piece in [*pieces, pieces[-1]._replace(text=".", thing=None)]:
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


def test_answers_are_learned_from_their_first_word_only_if_they_are_whole() -> None:
    for seed in range(10):
        *others, last = texts(make_scene((3, seed), "relation"), np.random.default_rng(seed))
        assert all(piece.learned for piece in last)
        assert not any(pieces[0].learned for pieces in others)


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


@torch.no_grad()
def test_each_text_is_read_as_if_it_alone_followed_its_image(taught: Any) -> None:
    model, processor = taught
    scenes = [make_scene((4, seed), "relation") for seed in range(3)]
    said = [texts(scene, np.random.default_rng(seed)) for seed, scene in enumerate(scenes)]
    states, _ = run(model, lesson(processor.tokenizer, look(model, processor, scenes), said))
    longest = max(
        sum(len(processor.tokenizer(piece.text)["input_ids"]) for text in each for piece in text)
        for each in said
    )
    for row, (scene, each) in enumerate(zip(scenes, said, strict=True)):
        column = states.shape[1] - longest - 1  # an end of sequence is behind the last one
        for text in each:
            ids = [i for one in text for i in processor.tokenizer(one.text)["input_ids"]]
            inputs = prompts(processor, [scene])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], torch.tensor([ids])], 1)
            inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
            if "mm_token_type_ids" in inputs:
                more = torch.zeros(1, len(ids), dtype=torch.long)
                inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], more], 1)
            alone = model.model(**inputs, use_cache=False).last_hidden_state[0, -len(ids) :]
            # the images' states are kept as float16
            found = states[row, column : column + len(ids)]
            torch.testing.assert_close(found, alone, atol=0.02, rtol=0.02)
            column += len(ids)


def shared(maps: list[Tensor], among: slice) -> Tensor:
    """The mean of what is attended to among some tokens."""
    return torch.stack([one[among] / one[among].sum() for one in maps]).mean(0)


@torch.no_grad()
def test_the_goal_is_what_the_name_attends_to_where_no_other_thing_has_it(taught: Any) -> None:
    model, processor = taught
    scene = make_scene((3, 0), "relation")
    (seen,) = look(model, processor, [scene])
    model.set_attn_implementation("eager")
    for thing, shape in enumerate(scene.shapes):
        inputs = prompts(processor, [without_twins(scene, thing)], f"the {shape.words}")
        if "mm_token_type_ids" not in inputs:
            inputs.pop("token_type_ids", None)
        out = model(**inputs, output_attentions=True, use_cache=False)
        cells = inputs["input_ids"][0] == model.config.image_token_id
        maps = [out.attentions[layer][0, NAMES, -1, cells] for layer in LAYERS]
        # LLaVA-NeXT: 7x7 tokens of the whole image, then those of its tiles
        tiled = hasattr(model.config, "image_grid_pinpoints")
        whole, small = slice(49 if tiled else None), slice(49, None)
        if tiled:
            own = seen.tiles[thing][seen.is_image].float()
            torch.testing.assert_close(own[small], shared(maps, small), atol=2e-3, rtol=2e-2)
            torch.testing.assert_close(own[small].sum(), torch.tensor(1.0), atol=2e-3, rtol=0)
        else:
            assert not seen.tiles.any()
        found = seen.wholes[thing][seen.is_image].float()
        torch.testing.assert_close(found[whole], shared(maps, whole), atol=2e-3, rtol=2e-2)
        torch.testing.assert_close(found.sum(), torch.tensor(1.0), atol=2e-3, rtol=0)
        if not twins(scene, shape):
            name = seen.names[names_of(scene).index(shape.kind)][seen.is_image].float()
            torch.testing.assert_close(name, shared(maps, slice(None)), atol=2e-3, rtol=2e-2)
    model.set_attn_implementation("sdpa")


@torch.no_grad()
def test_in_tiles_a_size_tells_two_things_apart_and_a_place_does_not() -> None:
    model, processor = random_twin("llava_next", 0, **GEOMETRY["llava_next"])
    scene = make_scene((3, 1), "size")
    (seen,) = look(model, processor, [scene])
    both, kinds = names_of(scene), set()
    for thing, shape in enumerate(scene.shapes):
        named = seen.names[both.index(shape.kind)].float() * (seen.is_image & ~seen.is_whole)
        for words in words_for(scene, shape):
            kinds.add(words.kind)
            goals = lesson(
                processor.tokenizer, [seen], [[telling(scene, thing, words, place=False)]]
            ).tiles.goal
            wanted = named / named.sum() if words.kind != "size" else seen.tiles[thing].float()
            assert goals
            for goal in goals:
                torch.testing.assert_close(goal, wanted)
    assert kinds >= {"size", "side"}


def test_all_losses_reach_the_language_model_and_none_the_tower(taught: Any) -> None:
    model, processor = taught
    optimizers(model)
    given = Lessons(model, processor, 6, 5).batch(0, 6)
    tiled = bool(given.tiles.goal)
    assert tiled == hasattr(model.config, "image_grid_pinpoints")
    parts, figures = losses(model, given, tiled)
    assert parts.keys() == WEIGHTS.keys() - ({"tiles"} if not tiled else set())
    assert losses(model, given)[0].keys() == WEIGHTS.keys() - {"tiles"}
    assert {"names_3", "tell_3"} <= figures.keys()
    queries = model.get_decoder().layers[LAYERS[-1]].self_attn.q_proj.weight
    for name, part in parts.items():
        assert torch.isfinite(part)
        assert part > 0
        model.zero_grad()
        part.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        reached = model.get_decoder().layers[0].mlp.up_proj.weight.grad
        assert reached.abs().sum() > 0, name
    assert parts["tell"].requires_grad
    assert queries.requires_grad
    towers = [v for n, v in model.named_parameters() if "vision" in n or "visual" in n]
    assert towers
    assert all(value.grad is None for value in towers)


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


class Room:
    """What keys know of their cells' places, and how well answers are told; on a few scenes."""

    def __init__(self, family: str, trained: bool) -> None:
        self.model, self.processor = random_twin(family, 0)
        if trained:
            shipped = PLUGINS / family / f"flmm_{family}/tiny"
            self.model.load_state_dict(pretrained(shipped))
        count = 28 if family == "llava_next" else 10  # it has few cells
        self.scenes = [make_scene((6, seed), sides=(176,)) for seed in range(count)]
        self.said = [texts(scene, np.random.default_rng(1)) for scene in self.scenes]

    def give(self) -> Any:
        few = prompts(self.processor, self.scenes[:6], SAID)
        return give_room(self.model, KEYS, LAYERS, few)

    @torch.no_grad()
    def measured(self) -> tuple[float, float]:
        """Caption loss; what a probe leaves of places in the keys of the worst layer."""
        seen = look(self.model, self.processor, self.scenes)
        given = lesson(self.processor.tokenizer, seen, self.said)
        caption = float(losses(self.model, given)[0]["caption"])
        cells = given.is_whole[0]
        heads = run(self.model, given)[1]
        keys = [heads[layer][1][:, KEYS, : len(cells)][:, cells] for layer in LAYERS]
        return caption, max(unexplained(key, round(int(cells.sum()) ** 0.5)) for key in keys)


@pytest.mark.parametrize(
    ("family", "allowed"), [("deepseek_vl", 0.65), ("llava_next", 0.22), ("qwen", 0.35)]
)
def test_with_room_keys_know_the_place_and_captions_stay(family: str, allowed: float) -> None:
    """Of random models: those that ship have their room.

    That of `llava_next` leaves more unexplained (0.29) if its tower's first norm scales the place.
    """
    room = Room(family, trained=False)
    before, lost = room.measured()
    kept = room.give()
    after, known = room.measured()
    assert lost > 0.8
    assert known < allowed
    assert abs(after - before) < 0.1
    with torch.no_grad():
        for value in room.model.parameters():
            value += 0.01 * torch.randn_like(value)
        keep(kept)
    assert room.measured()[1] < allowed + 0.05


def test_names_recover_in_all_parts_but_the_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(aligning.BATCH, "deepseek_vl", 2)
    model, processor = random_twin("deepseek_vl", 0)
    few = prompts(processor, [make_scene((6, seed)) for seed in range(2)], SAID)
    kept = give_room(model, KEYS, LAYERS, few)
    before = {name: value.clone() for name, value in model.named_parameters()}
    aligning.learn("deepseek_vl", model, processor, tmp_path, 2, gentle=True, room=kept)
    assert all(torch.equal(value[entries], values) for value, entries, values in kept)
    changed = {name for name, value in model.named_parameters() if not value.equal(before[name])}
    for part in ("vision_model.encoder", "aligner", "language_model.layers"):
        assert any(part in name for name in changed), part


@pytest.mark.parametrize("family", sorted(GEOMETRY))
def test_keys_of_the_taught_model_know_the_place(family: str) -> None:
    caption, known = Room(family, trained=True).measured()
    assert known < 0.35
    assert caption < 0.5


def test_room_in_the_turns_of_keys_costs_no_captions() -> None:
    room = Room("qwen", trained=True)
    before, _ = room.measured()
    room.give()
    after, known = room.measured()
    assert known < 0.35
    assert abs(after - before) < 0.1
