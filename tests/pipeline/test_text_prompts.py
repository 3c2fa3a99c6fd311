"""Hidden states of a phrase -> prompt tokens."""

from __future__ import annotations

import dataclasses

import torch

from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Features

LAYERS, HIDDEN, WIDTH = 3, 10, 6


def features(lengths: list[int], seed: int = 0) -> Features:
    generator = torch.Generator().manual_seed(seed)
    return Features(
        maps=AttentionMaps(torch.rand(len(lengths), 6, 2, 2), WHOLE_IMAGE),
        hidden=torch.randn(LAYERS, sum(lengths), HIDDEN, generator=generator),
        row_phrase=torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths).long()),
        image=None,
        image_hw=(20, 20),
    )


def test_each_phrase_gets_one_token_for_each_of_its_own() -> None:
    prompts = TextPrompts(LAYERS, HIDDEN, WIDTH)
    batch = [features([2, 1, 4]), features([]), features([3], seed=1)]
    given = prompts(batch)
    shapes = [[tuple(tokens.shape) for tokens in sample] for sample in given]
    assert shapes == [[(2, WIDTH), (1, WIDTH), (4, WIDTH)], [], [(3, WIDTH)]]
    (alone,) = prompts([batch[2]])
    torch.testing.assert_close(given[2][0], alone[0])


def test_layers_are_mixed_by_their_softmax_and_then_projected() -> None:
    prompts = TextPrompts(LAYERS, HIDDEN, WIDTH)
    one = features([2, 1])
    uniform = prompts.proj(one.hidden.mean(0))
    torch.testing.assert_close(torch.cat(prompts([one])[0]), uniform)
    with torch.no_grad():
        prompts.layer_weights.copy_(torch.tensor([0.0, 100.0, 0.0]))
    torch.testing.assert_close(torch.cat(prompts([one])[0]), prompts.proj(one.hidden[1]))


def test_the_layer_weights_learn() -> None:
    prompts = TextPrompts(LAYERS, HIDDEN, WIDTH)
    prompts([features([2])])[0][0].square().sum().backward()
    assert prompts.layer_weights.grad is not None
    assert prompts.layer_weights.grad.abs().min() > 0


def test_half_precision_states_give_float32_tokens() -> None:
    one = features([2])
    half = dataclasses.replace(one, hidden=one.hidden.bfloat16())
    assert TextPrompts(LAYERS, HIDDEN, WIDTH)([half])[0][0].dtype is torch.float32


def test_no_samples_give_nothing() -> None:
    assert TextPrompts(LAYERS, HIDDEN, WIDTH)([]) == ()
