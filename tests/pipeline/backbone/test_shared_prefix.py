"""Captions about one image give the same whether their prefix runs once or for each."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import pytest
import torch

from flmm_core.segment import Segment
from tests.models import CAPTIONS, FAMILIES, build, picture

shared = functools.cache(build)

SENTENCES = (
    *CAPTIONS,
    (Segment("the small purple star at the top", 0),),
    (Segment("x"), Segment("it", 0), Segment(" and "), Segment("the dog", 1), Segment(".")),
)


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Any:
    return shared(request.param)


def of_one_image(backbone: Any, seed: int = 1, shape: tuple[int, int] = (48, 48)) -> list[Any]:
    image = picture(*shape, seed)
    first = backbone.prepare(image, SENTENCES[0], name="a")
    return [first, *(backbone.prepare(image, s, name="b", like=first) for s in SENTENCES[1:])]


def traces(backbone: Any, batch: Any, **options: Any) -> list[Any]:
    return [(t.attention, t.hidden) for t in backbone.trace(batch, **options)]


def agree(ours: list[Any], theirs: list[Any], tolerance: float = 1e-4) -> None:
    for one, other in zip(ours, theirs, strict=True):
        for got, expected in zip(one, other, strict=True):
            assert got.shape == expected.shape
            torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


def alone(backbone: Any, samples: list[Any], **options: Any) -> list[Any]:
    """Each sample in a batch of its own, where there is nothing to share."""
    found = []
    for sample in samples:
        batch = backbone.collate([sample])
        assert batch.captions is None
        found += traces(backbone, batch, **options)
    return found


def test_a_sample_like_another_is_the_same_as_one_that_was_read_anew(backbone: Any) -> None:
    for sentence, taken in zip(SENTENCES, of_one_image(backbone), strict=True):
        anew = backbone.prepare(picture(48, 48, 1), sentence)
        assert anew.tensors.keys() == taken.tensors.keys()
        assert all(torch.equal(value, taken.tensors[key]) for key, value in anew.tensors.items())
        assert all(map(torch.equal, anew.phrase_rows, taken.phrase_rows))
        assert len(anew.prefix) == len(taken.prefix)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_sentences_of_one_image(backbone: Any, pool: str) -> None:
    samples = of_one_image(backbone)
    batch = backbone.collate(samples)
    assert batch.captions is not None
    assert batch.tensors["input_ids"].shape == (1, len(samples[0].prefix))
    agree(traces(backbone, batch, pool=pool), alone(backbone, samples, pool=pool))


def test_images_of_several_shapes_with_and_without_others_in_any_order(backbone: Any) -> None:
    one, other = of_one_image(backbone), of_one_image(backbone, 2, (48, 24))
    single = backbone.prepare(picture(24, 48, 3), SENTENCES[2], name="c")
    samples = [other[2], one[0], single, one[3], other[0], one[1]]
    batch = backbone.collate(samples)
    assert batch.captions is not None
    assert batch.captions.prefix.tolist() == [0, 1, 2, 1, 0, 1]
    agree(traces(backbone, batch), alone(backbone, samples))


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_backbone_that_does_not_share_gives_the_same(
    backbone: Any, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = of_one_image(backbone)
    shared_batch = backbone.collate(samples)
    monkeypatch.setattr(type(backbone), "shares_prefixes", False)
    batch = backbone.collate(samples, side=side)
    assert batch.captions is None
    assert batch.tensors["input_ids"].shape[0] == len(samples)
    agree(traces(backbone, shared_batch), traces(backbone, batch))


def test_the_prefix_runs_once(backbone: Any) -> None:
    seen = []
    hook = backbone.vlm.get_decoder().register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(tuple(kwargs["inputs_embeds"].shape[:2])),
        with_kwargs=True,
    )
    samples = of_one_image(backbone)
    try:
        backbone.trace(backbone.collate(samples))
    finally:
        hook.remove()
    longest = max(len(s.caption) for s in samples)
    assert seen == [(1, len(samples[0].prefix)), (len(samples), longest)]


def test_equal_images_that_were_read_apart_are_not_taken_for_one(backbone: Any) -> None:
    samples = [backbone.prepare(picture(48, 48, 1), sentence) for sentence in SENTENCES[:2]]
    assert backbone.collate(samples).captions is None


def test_another_prompt_is_another_prefix(backbone: Any) -> None:
    image = picture(48, 48, 1)
    first = backbone.prepare(image, SENTENCES[0])
    other = backbone.prepare(image, SENTENCES[1], prompt="Where is it?")
    assert backbone.collate([first, other]).captions is None


def test_without_a_caption_nothing_is_shared(backbone: Any) -> None:
    image = picture(48, 48, 1)
    first = backbone.prepare(image, SENTENCES[0])
    batch = backbone.collate([first, backbone.prepare(image, (), like=first)])
    assert batch.captions is None
    assert len(backbone.trace(batch)) == 2


def test_a_cache_that_drops_keys_is_not_used() -> None:
    backbone = build("llava_next_window")
    samples = of_one_image(backbone)
    batch = backbone.collate(samples)
    assert batch.captions is None
    agree(traces(backbone, batch), alone(backbone, samples))


def test_the_part_before_the_caption(backbone: Any) -> None:
    sample = of_one_image(backbone)[0]
    prefix = sample.prefix
    assert {len(value) for value in prefix.tokens.values()} == {len(prefix)}
    assert prefix.tokens.keys() >= {"input_ids", "attention_mask"}
    assert {*prefix.tokens, *prefix.image} == sample.tensors.keys()
    assert len(sample.tokens["input_ids"]) == len(sample) > len(prefix)


def test_one_caption_after_another_goes_on_from_what_was_seen(backbone: Any) -> None:
    samples = of_one_image(backbone)
    seen = backbone.see(backbone.prepare(picture(48, 48, 1), ()))
    for sample in (*samples, samples[0]):
        batch = backbone.collate([sample], apart=True)
        agree(traces(backbone, batch, seen=seen), alone(backbone, [sample]))
    together = backbone.collate(samples, apart=True)
    agree(traces(backbone, together, seen=seen), alone(backbone, samples))


def test_captions_that_begin_before_the_end_of_what_was_seen(backbone: Any) -> None:
    # as with a tokenizer that joins the prompt's last characters with the caption's first
    samples = of_one_image(backbone)
    seen = backbone.see(backbone.prepare(picture(48, 48, 1), ()))
    start = samples[0].start - 1
    moved = [
        replace(each, start=start, caption=each.tokens["input_ids"][start:]) for each in samples
    ]
    for sample, same in zip(samples, moved, strict=True):
        batch = backbone.collate([same], apart=True)
        assert batch.tensors["input_ids"].shape[1] == start
        agree(traces(backbone, batch, seen=seen), alone(backbone, [sample]))


def test_nothing_is_seen_ahead_where_captions_cannot_go_on(
    backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drops_keys = build("llava_next_window")
    assert drops_keys.see(drops_keys.prepare(picture(48, 48, 1), ())) is None
    sample = backbone.prepare(picture(48, 48, 1), ())
    for own in ("collate", "trace"):
        kind = type("Own", (type(backbone),), {own: lambda self, given: given})
        monkeypatch.setattr(backbone, "__class__", kind)
        assert backbone.see(sample) is None
        monkeypatch.undo()
    monkeypatch.setattr(type(backbone), "shares_prefixes", False)
    assert backbone.see(sample) is None
