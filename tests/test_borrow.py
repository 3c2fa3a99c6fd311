"""A tiny model that starts from another family's weights sees what that one sees."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from recipes.borrow import LOANS, copy_weights, quiet_mean, rotate_vision, states_of
from recipes.pretrain import Batches, Stage
from recipes.twins import random_twin


@pytest.fixture(scope="module")
def lender() -> Any:
    return random_twin("qwen", 5)


def test_a_mean_that_is_subtracted_says_nothing_after_the_turn() -> None:
    states = torch.randn(500, 12, generator=torch.Generator().manual_seed(0)) + 2
    states[:, 5] = 0.01 * states[:, 3]
    turn = quiet_mean(states)
    torch.testing.assert_close(turn @ turn.T, torch.eye(12))
    turned = states @ turn
    kept = torch.nn.functional.layer_norm(turned, (12,))
    expected = torch.nn.functional.rms_norm(states, (12,)) @ turn
    torch.testing.assert_close(kept, expected, atol=0.01, rtol=0)


def test_the_turned_encoder_gives_the_lenders_tokens(lender: Any, monkeypatch: Any) -> None:
    """With the lender's own gated layers in it, as these are what is fitted later."""
    monkeypatch.setattr("recipes.borrow.IMAGES", 2)
    teacher, processor = lender[0].model.visual, lender[1]
    batches = Batches(processor, Stage(1, 2, "several"), 0)
    model, own = random_twin("qwen3_vl", 6)
    copied = copy_weights(
        model, own.tokenizer, lender[0], processor.tokenizer, LOANS["qwen3_vl"].names
    )
    assert copied > 1_000_000
    encoder, turn = model.model.visual, quiet_mean(states_of(teacher, batches)[0].flatten(0, 1))
    rotate_vision(encoder, teacher, turn)

    class Turned(torch.nn.Module):
        def __init__(self, block: Any) -> None:
            super().__init__()
            self.block = block

        def forward(self, given: torch.Tensor) -> torch.Tensor:
            return self.block.mlp(given @ turn * self.block.norm2.weight) @ turn

    for block, other in zip(encoder.blocks, teacher.blocks, strict=True):
        block.mlp = Turned(other)
    given = batches.batch(3).inputs
    with torch.no_grad():
        expected = teacher(given["pixel_values"], given["image_grid_thw"]).pooler_output
        got = encoder(given["pixel_values"], given["image_grid_thw"]).pooler_output
    error = (got - expected).square().mean() / expected.var()
    assert error < 0.01


@pytest.mark.parametrize(("family", "lender_name"), [("idefics3", "deepseek_vl")])
def test_tokens_keep_their_embeddings(family: str, lender_name: str) -> None:
    (model, own), (other, its) = random_twin(family, 1), random_twin(lender_name, 2)
    copy_weights(model, own.tokenizer, other, its.tokenizer, LOANS[family].names)
    for token in ("Ġring", "Ġred", "<|eos|>"):
        rows = [
            each.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(token)]
            for each, tokenizer in ((model, own.tokenizer), (other, its.tokenizer))
        ]
        assert torch.equal(*rows)
