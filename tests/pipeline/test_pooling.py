"""Learned pooling: it begins as the mean, and reads the last tokens as training finds best."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flmm_core.errors import UsageError, WeightsError
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import read_info, read_weights
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.original import export_original
from flmm_core.pipeline.pooling import GAIN, LearnedPooling
from flmm_core.pipeline.refiners.none import NoRefiner
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Features, Trace
from flmm_core.segment import Segment
from flmm_core.training.losses import head_loss
from tests.flows import assemble, flow, fresh_grounder, weighed
from tests.models import FAMILIES, build, picture
from tests.pipeline.backbone.test_recorder import eager

PHRASES = ("a", "red", "kite left of it")
ENDS = 4


@pytest.fixture(scope="module", params=FAMILIES)
def seen(request: pytest.FixtureRequest) -> tuple[Any, Trace, Tensor, list[Tensor]]:
    """A backbone, its trace of phrases of 1 to 15 tokens, and transformers' own attention."""
    backbone: Any = build(request.param)
    pieces = [Segment(word, number) for number, word in enumerate(PHRASES)]
    caption = [piece for each in pieces for piece in (each, Segment(" "))]
    inputs = backbone.prepare(picture(48, 24), caption)
    batch = backbone.collate([inputs])
    (trace,) = backbone.trace(batch, ends=ENDS)
    attention, _ = eager(backbone.vlm, **batch.tensors)
    columns = torch.cat([view.token_index.flatten() for view in inputs.views])
    return backbone, trace, attention[:, 0][..., columns], list(inputs.phrase_rows)


def test_the_ends_are_the_attention_of_the_last_tokens(seen: Any) -> None:
    backbone, trace, attention, rows = seen
    assert len(rows[0]) == 1
    assert len(rows[2]) > ENDS
    layers, heads = backbone.num_layers, backbone.num_heads
    assert trace.ends.shape == (layers, heads, 3, ENDS, attention.shape[-1])
    for number, places in enumerate(rows):
        every = attention[:, :, places]  # (L, N, T_p, M)
        near = {"atol": 1e-5, "rtol": 0.0}
        torch.testing.assert_close(trace.attention[:, :, number], every.mean(2), **near)
        for place in range(ENDS):
            short = place >= len(places)
            expected = every.mean(2) if short else every[:, :, len(places) - 1 - place]
            torch.testing.assert_close(trace.ends[:, :, number, place], expected, **near)


def test_it_begins_at_the_mean_and_can_become_any_token(seen: Any) -> None:
    backbone, trace, attention, rows = seen
    maps = attention_maps(trace)
    pooling = LearnedPooling(ENDS, backbone.attention_channels)
    assert torch.equal(pooling([maps])[0].maps, maps.maps)
    for place in range(min(ENDS, len(rows[2]))):
        with torch.no_grad():
            pooling.toward.zero_()[place] = 1 / GAIN
        alone = attention[:, :, rows[2][len(rows[2]) - 1 - place]]
        token = attention_maps(replace(trace, attention=alone[:, :, None], ends=None))
        (pooled,) = pooling([maps])
        torch.testing.assert_close(pooled.maps[2:], token.maps, atol=1e-5, rtol=0)
        # nothing is left to be weighed in a phrase of one token
        torch.testing.assert_close(pooled.maps[0], maps.maps[0], atol=1e-6, rtol=0)


def test_each_channel_has_weights_of_its_own(seen: Any) -> None:
    backbone, trace, _, _ = seen
    maps, channels = attention_maps(trace), backbone.attention_channels
    pooling = LearnedPooling(1, channels)
    with torch.no_grad():
        pooling.toward[0, 1] = 0.7 / GAIN
    (pooled,) = pooling([maps])
    assert maps.ends is not None
    mixed = 0.3 * maps.maps[:, 1] + 0.7 * maps.ends[:, 0, 1]
    torch.testing.assert_close(pooled.maps[:, 1], mixed)
    others = [channel for channel in range(channels) if channel != 1]
    assert torch.equal(pooled.maps[:, others], maps.maps[:, others])


def test_fewer_ends_than_weights_are_refused(seen: Any) -> None:
    backbone, trace, _, _ = seen
    pooling = LearnedPooling(ENDS + 1, backbone.attention_channels)
    with pytest.raises(ValueError, match="the maps have 4 ends, the weights are for 5"):
        pooling([attention_maps(trace)])
    with pytest.raises(ValueError, match="the maps have 0 ends"):
        pooling([attention_maps(replace(trace, ends=None))])


def test_the_loss_reaches_the_weights_and_an_untrained_head_is_that_of_the_mean() -> None:
    backbone = build("deepseek_vl")
    plain, learned = assemble(backbone), assemble(backbone, ends=2)
    inputs = plain.observer.prepare(picture(48, 24), [Segment("red kite", 0), Segment(".", 1)])
    (expected,), (found,) = flow(plain, [inputs]), flow(learned, [inputs])
    torch.testing.assert_close(found.coarse_logits, expected.coarse_logits, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-6, rtol=0)

    torch.manual_seed(0)
    channels = backbone.attention_channels
    head = Head(MaskHead(channels, 4), None, NoRefiner(), pooling=LearnedPooling(2, channels))
    features = learned.observer.observe(learned.observer.collate([inputs]))
    truth = torch.zeros(2, 24, 48, dtype=torch.bool)
    truth[:, 5:15, 10:30] = True
    (one, loss) = head_loss(head, features, [truth])
    loss.total.backward()
    assert head.pooling is not None
    grads = head.pooling.toward.grad
    assert grads is not None
    assert (grads.abs() > 0).all()
    assert any(weight is head.pooling.toward for _, ws in head.learning_groups() for weight in ws)
    with torch.no_grad():
        head.pooling.toward -= grads
    (other, _) = head_loss(head, features, [truth])
    assert (other[0].coarse_logits - one[0].coarse_logits).abs().max() > 1e-4


def test_masks_of_some_phrases_are_those_of_all() -> None:
    learned = weighed(assemble(build("llava_next"), ends=2))
    caption = [Segment(word, number) for number, word in enumerate(PHRASES)]
    inputs = learned.observer.prepare(picture(48, 24), caption)
    features = learned.observer.observe(learned.observer.collate([inputs]))
    which = torch.tensor([True, False, True])
    with torch.no_grad():
        (whole,), (part,) = learned.head(features), learned.head(features, [which])
    torch.testing.assert_close(part.coarse_logits, whole.coarse_logits[which])
    torch.testing.assert_close(part.maps.maps, whole.maps.maps[which])


@pytest.mark.parametrize("options", [{"ends": 2}, {"pool": "max"}])
def test_phrases_of_several_images_in_a_batch_are_those_of_each_alone(
    seen: Any, options: dict[str, Any]
) -> None:
    backbone = seen[0]
    grounder, averaging = weighed(assemble(backbone, **options)), assemble(backbone)
    images = picture(48, 24, 1), picture(24, 48, 2), picture(48, 48, 3)
    words = PHRASES[::-1], PHRASES[:2], PHRASES[2:]
    asked = [grounder.prepare(image, some) for image, some in zip(images, words, strict=True)]
    moved = 0.0
    for image, some, result in zip(images, words, grounder.ground_prepared(asked), strict=True):
        for number, phrase in enumerate(some):
            alone = grounder.ground(image, phrase)
            for found, one in (
                (result.coarse_logits, alone.coarse_logits),
                (result.logits, alone.logits),
                (result.heat.maps, alone.heat.maps),
            ):
                torch.testing.assert_close(found[number], one[0], atol=1e-3, rtol=0)
            mean = averaging.ground(image, phrase)
            moved = max(moved, float((mean.coarse_logits - alone.coarse_logits).abs().max()))
    assert moved > 0.02


def test_it_is_saved_and_loaded_with_the_head(random_twin: Path, tmp_path: Path) -> None:
    options = {"base_channels": 4, "enlarge_to": 16, "pool": "learned", "pool_ends": 3}
    grounder = weighed(fresh_grounder(Recipe("qwen", model=str(random_twin), **options)))
    assert grounder.head.pooling is not None
    grounder.save_pretrained(tmp_path / "head")
    recipe = read_info(tmp_path / "head").recipe
    assert (recipe.pool, recipe.pool_ends, recipe.ends) == ("learned", 3, 3)
    back = Grounder.from_pretrained(tmp_path / "head")
    words = ["the red ring left of the star", "a"]
    one, two = (each.ground(picture(60, 80), words) for each in (grounder, back))
    assert torch.equal(one.coarse_logits, two.coarse_logits)
    assert torch.equal(one.heat.maps, two.heat.maps)
    weights = read_weights(tmp_path / "head")["pooling.toward"]
    assert torch.equal(weights, grounder.head.pooling.toward.detach())
    with pytest.raises(WeightsError, match=r"pooling\.toward is"):
        grounder.head.load_weights({**grounder.head.state_dict(), "pooling.toward": weights[:2]})
    with pytest.raises(UsageError, match="tokens of a phrase are weighed as learned, not averaged"):
        export_original(tmp_path / "head", tmp_path / "head.pth")


def two_alike(chance: torch.Generator, channels: int, tells: int) -> tuple[Features, Tensor]:
    """Two squares: a phrase's first four tokens see both, in `tells` channels its last only one."""
    left, right = torch.zeros(8, 8), torch.zeros(8, 8)
    for square, x in ((left, 0), (right, 5)):
        y = int(torch.randint(0, 6, (1,), generator=chance))
        square[y : y + 3, x : x + 3] = 1
    meant = (left, right)[int(torch.randint(0, 2, (1,), generator=chance))]
    seen = (left + right).expand(5, channels, 8, 8).clone()
    seen[4, :tells] = meant + 0.3 * (left + right - meant)
    seen += 0.6 * torch.rand(seen.shape, generator=chance)
    seen /= seen.sum((2, 3), keepdim=True)
    maps = AttentionMaps(seen.mean(0, keepdim=True), WHOLE_IMAGE, seen[None, 4:])
    rows = torch.zeros(5, dtype=torch.int64)
    truth = meant.bool().repeat_interleave(2, 0).repeat_interleave(2, 1)
    return Features(maps, torch.zeros(1, 5, 1), rows, None, (16, 16)), truth[None]


def test_training_finds_the_channels_whose_last_token_tells() -> None:
    chance = torch.Generator().manual_seed(1)
    scenes = [two_alike(chance, channels=6, tells=2) for _ in range(64)]
    torch.manual_seed(0)
    head = Head(MaskHead(6, 4, 8), None, NoRefiner(), pooling=LearnedPooling(1, 6)).train()
    assert head.pooling is not None
    optimizer = torch.optim.AdamW(head.parameters(), lr=6e-3)
    for step in range(80):
        batch = [scenes[(step * 8 + place) % 64] for place in range(8)]
        _, loss = head_loss(head, [one for one, _ in batch], [truth for _, truth in batch])
        optimizer.zero_grad()
        loss.total.backward()
        optimizer.step()
    found = head.pooling.weights[0].detach()
    assert found[:2].min() > 0.5
    assert found[:2].min() > found[2:].abs().max()


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_no_other_pooling_has_ends(pool: str) -> None:
    assert Recipe("qwen", pool=pool, pool_ends=7).ends == 0  # type: ignore[arg-type]
