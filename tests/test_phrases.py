"""Expressions for place and size mean one thing, and the measure reads the right tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data.drawn.scenes import Scene, make_scene, paint
from flmm_core.plugins import load_backbones, load_class
from recipes.of_two import TOKENS, captions, measure, shares
from recipes.phrases import KINDS, RANKS, words_for

AXES = {"left": (0, 1), "right": (0, -1), "upper": (1, 1), "lower": (1, -1)}
AXES |= {"above": AXES["upper"], "below": AXES["lower"]}
AXES |= {"top": AXES["upper"], "bottom": AXES["lower"]}


def picked(scene: Scene, masks: NDArray[np.bool_], kind: str, text: str) -> int:
    """The thing that an expression means, read off its words and the masks alone."""
    words = text.split()
    named = [n for n, one in enumerate(scene.shapes) if one.words in text]
    first = min((one.words for one in scene.shapes if one.words in text), key=text.index)
    same = [n for n in named if scene.shapes[n].words == first]
    at = {n: np.argwhere(masks[n]).mean(0)[::-1] for n in named}  # (x, y)
    if kind == "size":
        return sorted(same, key=lambda n: masks[n].sum() * (1 if words[0] == "small" else -1))[0]
    if kind == "place":
        where = text.split(first)[1]
        thirds = 0 if "left" in where else 2 if "right" in where else 1
        third = np.array([thirds, 0 if "top" in where else 2 if "bottom" in where else 1])
        size = np.array([scene.width, scene.height])
        return min(same, key=lambda n: np.abs(at[n] / size - (third + 0.5) / 3).max())
    if kind in ("side", "ordinal"):
        axis, sign = AXES[words[0] if kind == "side" else words[-1]]
        row = sorted(same, key=lambda n: sign * at[n][axis])
        return row[RANKS.index(words[2]) if kind == "ordinal" else 0]
    (mark,) = (n for n in named if n not in same)
    if kind == "neighbor":
        return min(same, key=lambda n: np.hypot(*(at[n] - at[mark])))
    axis, sign = next(AXES[word] for word in words[2:] if word in AXES)
    (one,) = (n for n in same if sign * (at[mark][axis] - at[n][axis]) > 0)
    return one


def test_every_kind_of_expression_means_the_thing_it_was_made_for() -> None:
    seen = dict.fromkeys(KINDS, 0)
    for seed in range(30):
        scene = make_scene((3, seed), ("relation", "size")[seed % 2])
        masks = paint(scene)[1]
        for number, shape in enumerate(scene.shapes):
            for words in words_for(scene, shape):
                assert picked(scene, masks, words.kind, words.text) == number, words
                assert words.parts[0].endswith(shape.words)
                seen[words.kind] += 1
    assert min(seen.values()) >= 5


@pytest.fixture(scope="module")
def twin() -> Any:
    spec = load_backbones().get("deepseek_vl")
    return load_class(spec).load(spec, "tiny")


def test_the_tokens_that_are_measured_are_the_nouns_and_the_ends(twin: Any) -> None:
    scene = make_scene((3, 0), "relation")
    image, found = Image.fromarray(paint(scene)[0]), set()
    for shape in scene.shapes:
        for words in words_for(scene, shape):
            marked, whole = (twin.prepare(image, text) for text in captions(words))
            texts = [
                twin.tokenizer.decode(each.tokens["input_ids"][rows])
                for each in (marked, whole)
                for rows in each.phrase_rows
            ]
            ends = {f" {shape.name}", f" {words.text.split()[-1]}"}
            assert set(texts[:-1]) == ends
            assert texts[0] == f" {shape.name}"
            assert texts[-1].strip() == f"the {words.text}"
            found.add(words.kind)
    assert len(found) >= 3


def test_an_expression_s_shares_are_those_of_its_thing_and_of_its_twin(twin: Any) -> None:
    found = measure(twin, 2)
    assert len(found) >= 3
    assert set(found) <= set(KINDS)
    for mass in found.values():
        assert mass.shape[1:] == (len(TOKENS), twin.attention_channels, 2)
        assert (mass >= 0).all()
        assert (mass.sum(-1) <= 1 + 1e-5).all()
        assert mass.max() > 0.1
    masses = torch.tensor([[0.3, 0.1], [0.0, 0.0], [0.0, 0.2]])
    assert shares(masses).tolist() == [0.75, 0.5, 0.0]
    # two expressions that mean either of two things share the attention of a token before both
    sides = found["side"].mean(0) if "side" in found else found["relation"].mean(0)
    assert 0.3 < float(shares(sides).mean()) < 0.7
