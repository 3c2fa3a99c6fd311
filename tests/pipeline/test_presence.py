"""Whether a phrase names anything: read from its last token, learned beside the masks."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from flmm_core.pipeline.head import Head
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.presence import Presence
from flmm_core.pipeline.refiners.none import NoRefiner
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Features
from flmm_core.training.losses import head_loss
from tests.pipeline.test_text_prompts import HIDDEN, LAYERS, features

SIZE = (24, 24)


def scene(there: list[bool], seed: int) -> tuple[Features, Tensor]:
    """Phrases of one or two tokens, and their truths.

    The maps are alike for all; in the state of the last token one direction says what is there.
    """
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([1 + place % 2 for place in range(len(there))])
    told = torch.tensor(there).float().mul(4).sub(2)  # (P,)
    hidden = torch.randn(LAYERS, int(lengths.sum()), HIDDEN, generator=generator)
    hidden[1, lengths.cumsum(0) - 1, 3] += told
    maps = torch.rand(len(there), 6, 8, 8, generator=generator)
    truth = torch.zeros(len(there), *SIZE, dtype=torch.bool)
    truth[torch.tensor(there), 4:12, 4:12] = True
    found = Features(
        maps=AttentionMaps(maps / maps.sum((2, 3), keepdim=True), WHOLE_IMAGE),
        hidden=hidden,
        row_phrase=torch.arange(len(there)).repeat_interleave(lengths),
        image=None,
        image_hw=SIZE,
    )
    return found, truth


def small_head() -> Head:
    torch.manual_seed(0)
    return Head(MaskHead(6, 4, 8), None, NoRefiner(), Presence(LAYERS, HIDDEN))


def test_the_logit_is_a_readout_of_the_last_token_alone() -> None:
    torch.manual_seed(1)
    presence = Presence(LAYERS, HIDDEN)
    batch = [features([2, 1, 4]), features([]), features([3], seed=1)]
    told = presence(batch)
    assert [len(logits) for logits in told] == [3, 0, 1]
    norm = nn.LayerNorm(HIDDEN, elementwise_affine=False)
    for row, logit in zip((1, 2, 6), told[0], strict=True):
        states = torch.cat([norm(layer[row]) for layer in batch[0].hidden])
        torch.testing.assert_close(presence.readout(states)[0], logit)
    changed = batch[0].hidden.clone()
    changed[:, [0, 3, 4, 5]] = 9.0
    torch.testing.assert_close(presence([replace(batch[0], hidden=changed)])[0], told[0])
    assert presence([]) == ()


def test_masks_of_some_phrases_are_those_of_all() -> None:
    head = small_head()
    sample, _ = scene([True, False, True, True], seed=0)
    which = torch.tensor([False, True, False, True])
    (whole,), (part,) = head([sample]), head([sample], [which])
    torch.testing.assert_close(part.logits, whole.logits[which])
    torch.testing.assert_close(part.maps.maps, whole.maps.maps[which])
    assert whole.there_logits is not None
    torch.testing.assert_close(part.there_logits, whole.there_logits)
    kept = sample.of_phrases(which)
    assert kept.row_phrase.tolist() == [0, 0, 1, 1]
    assert torch.equal(kept.hidden, sample.hidden[:, [1, 2, 4, 5]])


def test_evidence_falls_with_the_probability_that_a_phrase_is_there() -> None:
    sample, _ = scene([True, True], seed=0)
    (grounding,) = small_head()([sample])
    alone = replace(grounding, there_logits=None).evidence
    told = replace(grounding, there_logits=torch.tensor([1.5, -2.0])).evidence
    torch.testing.assert_close(told, alone * torch.tensor([1.5, -2.0]).sigmoid())


def test_a_phrase_that_names_nothing_teaches_presence_and_no_mask() -> None:
    head, batch = small_head(), [scene([False, False, False], seed=2)]
    groundings, loss = head_loss(head, [batch[0][0]], [batch[0][1]])
    assert [len(grounding.logits) for grounding in groundings] == [0]
    assert set(loss.parts) - {"presence"} == {
        "coarse_dice", "coarse_cross_entropy", "refined_dice", "refined_cross_entropy",
    }  # fmt: skip
    loss.total.backward()
    assert all(not w.grad.any() for w in head.mask_head.parameters() if w.grad is not None)
    assert head.presence is not None
    assert head.presence.readout.weight.grad is not None
    assert head.presence.readout.weight.grad.any()
    told = torch.nn.BCEWithLogitsLoss()(groundings[0].there_logits, torch.zeros(3))
    torch.testing.assert_close(loss.parts["presence"], told)


def test_a_sample_without_phrases_has_no_loss() -> None:
    maps = AttentionMaps(torch.zeros(0, 6, 8, 8), WHOLE_IMAGE)
    nothing = replace(features([]), maps=maps, image_hw=SIZE)
    _, loss = head_loss(small_head(), [nothing], [torch.zeros(0, *SIZE, dtype=torch.bool)])
    assert loss.total == 0


def test_it_learns_what_the_state_says() -> None:
    head = small_head()
    rng = torch.Generator().manual_seed(5)
    optimizer = torch.optim.AdamW(head.parameters(), lr=2e-2)
    for step in range(60):
        there = (torch.rand(12, generator=rng) < 0.5).tolist()
        sample, truth = scene(there, seed=100 + step)
        _, loss = head_loss(head, [sample], [truth])
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    unseen = [scene([True, False] * 20, seed=900 + number) for number in range(5)]
    with torch.no_grad():
        told = torch.cat([head([sample])[0].there_logits for sample, _ in unseen])
    right = (told > 0) == torch.tensor([True, False]).repeat(100)
    assert right.float().mean() > 0.9
    assert head.presence is not None
    by_layer = head.presence.readout.weight.detach().view(LAYERS, HIDDEN)
    assert by_layer.abs().argmax() == HIDDEN + 3  # layer 1, where the scenes say it
