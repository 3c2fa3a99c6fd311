"""The two halves of the flow, on toy models of the real transformers classes."""

from __future__ import annotations

import pickle
from dataclasses import replace
from itertools import chain
from typing import Any

import pytest
import torch

from flmm_core.errors import WeightsError
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.observer import Observer, ObserverInputs
from flmm_core.pipeline.refiners.none import NoRefiner
from flmm_core.pipeline.refiners.sam import SamRefiner
from flmm_core.pipeline.types import Features, Segment
from flmm_core.training.losses import dice_loss, grounding_loss, head_loss
from tests.flows import assemble, flow
from tests.heads import small_sam
from tests.models import CAPTIONS, build, picture

FAMILIES = ("qwen", "llava_next")


@pytest.fixture(scope="module")
def backbones() -> dict[str, Any]:
    return {}


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest, backbones: dict[str, Any]) -> Any:
    return backbones.setdefault(request.param, build(request.param))


@pytest.fixture
def qwen(backbones: dict[str, Any]) -> Any:
    return backbones.setdefault("qwen", build("qwen"))


@pytest.fixture
def grounder(qwen: Any) -> Grounder:
    return assemble(qwen)


def samples_of(observer: Observer) -> list[ObserverInputs]:
    images = picture(48, 48, 1), picture(48, 24, 2)
    return [
        observer.prepare(image, caption, name=f"sample-{i}")
        for i, (image, caption) in enumerate(zip(images, CAPTIONS, strict=True))
    ]


def observed(grounder: Grounder, samples: list[ObserverInputs]) -> tuple[Features, ...]:
    return grounder.observer.observe(grounder.observer.collate(samples))


def test_companions_change_nothing(backbone: Any) -> None:
    grounder = assemble(backbone)
    samples = samples_of(grounder.observer)
    together = flow(grounder, samples)
    alone = [flow(grounder, [sample])[0] for sample in samples]
    assert [g.logits.shape for g in together] == [(2, 48, 48), (1, 24, 48)]
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours.coarse_logits - theirs.coarse_logits).abs().max() <= 1e-4
        assert (ours.logits - theirs.logits).abs().max() <= 1e-3  # random SAMs amplify rounding
        assert ours.maps.maps.shape[:2] == (len(ours.logits), backbone.attention_channels)


def test_one_by_one_companions_change_not_even_the_last_bit(backbone: Any) -> None:
    grounder = assemble(backbone)
    samples = samples_of(grounder.observer)
    exact = replace(grounder.observer, one_by_one=True)
    together = exact.observe(exact.collate(samples))
    for sample, features in zip(samples, together, strict=True):
        (alone,) = grounder.observer.observe(grounder.observer.collate([sample]))
        assert torch.equal(features.maps.maps, alone.maps.maps)
        assert torch.equal(features.hidden, alone.hidden)
        assert features.image is not None
        assert alone.image is not None
        assert torch.equal(features.image.embedding, alone.image.embedding)


def test_one_step_trains_the_head_and_leaves_what_is_frozen(backbone: Any) -> None:
    grounder = assemble(backbone)
    features, head = observed(grounder, samples_of(grounder.observer)), grounder.head
    encoder: Any = grounder.observer.encoder
    before = backbone.weights_digest()
    frozen = [value.clone() for value in encoder.module.parameters()]
    truths = [torch.rand(2, 48, 48) > 0.7, torch.rand(1, 24, 48) > 0.7]
    trained = [weight for _, group in head.learning_groups() for weight in group]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    losses = []
    for _ in range(3):
        loss = grounding_loss(head(features), truths).total
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None for weight in trained)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert backbone.weights_digest() == before
    after = encoder.module.parameters()
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))


def test_masks_that_are_not_refined_are_trained_as_coarse_ones_only(grounder: Grounder) -> None:
    features, head = observed(grounder, samples_of(grounder.observer)), grounder.head
    truths = [torch.rand(2, 48, 48) > 0.7, torch.rand(1, 24, 48) > 0.7]
    some = [torch.tensor([False, True]), torch.tensor([True])]
    whole, (groundings, loss) = head(features), head_loss(head, features, truths, refine=some)
    assert [len(each.coarse_logits) for each in groundings] == [2, 1]
    assert [len(each.logits) for each in groundings] == [1, 1]
    for each, every, kept in zip(groundings, whole, some, strict=True):
        assert torch.equal(each.coarse_logits, every.coarse_logits)
        torch.testing.assert_close(each.logits, every.logits[kept], rtol=0, atol=1e-3)
    expected = grounding_loss(whole, truths)
    assert loss.coarse_dice == expected.coarse_dice
    pairs = zip(whole, truths, some, strict=True)
    dice = [dice_loss(each.logits[kept], truth[kept]) for each, truth, kept in pairs]
    torch.testing.assert_close(loss.refined_dice, torch.cat(dice).mean(), rtol=0, atol=1e-4)


def test_samples_without_phrases_pass_through(grounder: Grounder) -> None:
    empty = grounder.observer.prepare(picture(48, 48), [Segment("Nothing is here.")])
    (nothing,) = grounder.head(observed(grounder, [empty]))
    assert nothing.logits.shape == (0, 48, 48)
    loss = grounding_loss([nothing], [torch.zeros(0, 48, 48)]).total
    assert loss == 0
    loss.backward()
    mixed = flow(grounder, [empty, *samples_of(grounder.observer)])
    assert [len(g.logits) for g in mixed] == [0, 2, 1]
    assert all(g.logits.isfinite().all() for g in mixed)


def test_without_a_refiner_neither_text_prompts_nor_images_are_there(qwen: Any) -> None:
    grounder = assemble(qwen, refiner=NoRefiner(), encoder=None)
    samples = samples_of(grounder.observer)
    assert [sample.image for sample in samples] == [None, None]
    assert {name.split(".")[0] for name in grounder.head.state_dict()} == {"mask_head"}
    (grounding, _) = flow(grounder, samples)
    assert grounding.logits.shape == (2, 48, 48)


def test_sentences_about_one_image_share_its_encoding(grounder: Grounder) -> None:
    observer = grounder.observer
    image = picture(48, 24)
    first = observer.prepare(image, CAPTIONS[0])
    second = observer.prepare(image, CAPTIONS[1], like=first)
    other = observer.prepare(image, CAPTIONS[1])
    batch = observer.collate([first, other, second])
    assert (len(batch.images), batch.image_of) == (2, (0, 1, 0))
    features = observer.observe(batch)
    assert all(f.image is not None and f.image.input_hw == (32, 64) for f in features)


def test_preparing_needs_no_weights_and_can_be_sent_to_workers(grounder: Grounder) -> None:
    light = pickle.dumps(grounder.observer)
    assert len(light) < sum(p.nbytes for p in grounder.backbone.vlm.parameters())
    observer = pickle.loads(light)
    sample = pickle.loads(pickle.dumps(samples_of(observer)[0]))
    assert sample.image.dtype is torch.uint8
    assert sample.backbone.image_hw == (48, 48)
    whole = samples_of(grounder.observer)[0]
    assert torch.equal(sample.backbone.tensors["input_ids"], whole.backbone.tensors["input_ids"])


def test_the_head_holds_what_is_trained_and_nothing_frozen(grounder: Grounder) -> None:
    state = grounder.head.state_dict()
    parts = {".".join(name.split(".")[:2]) for name in state}
    assert parts == {
        "mask_head.unet",
        "text_prompts.layer_weights",
        "text_prompts.proj",
        "refiner.prompt_encoder",
        "refiner.mask_decoder",
    }
    groups = dict(grounder.head.learning_groups())
    trained = [value for value in grounder.head.parameters() if value.requires_grad]
    assert list(groups) == ["head", "refiner"]
    assert all(a is b for a, b in zip(chain(*groups.values()), trained, strict=True))
    assert grounder.head.trainable_parameters == sum(map(torch.numel, trained))


def test_a_state_makes_another_head_the_same(qwen: Any) -> None:
    first, second = assemble(qwen, seed=0), assemble(qwen, seed=1)
    features = observed(first, samples_of(first.observer))
    with torch.no_grad():
        wanted = first.head(features)[0].logits
        assert not torch.allclose(second.head(features)[0].logits, wanted, atol=1e-3)
        second.head.load_weights(first.head.state_dict())
        assert torch.equal(second.head(features)[0].logits, wanted)


def test_a_state_that_does_not_fit_is_refused_whole(grounder: Grounder) -> None:
    head = grounder.head
    state = {name: torch.zeros_like(value) for name, value in head.state_dict().items()}
    state["text_prompts.proj.bias"] = torch.zeros(3)
    state["extra"] = torch.zeros(1)
    del state["text_prompts.layer_weights"]
    before = {name: value.clone() for name, value in head.state_dict().items()}
    with pytest.raises(WeightsError) as caught:
        head.load_weights(state)
    assert str(caught.value) == (
        "The weights do not fit this head.\n"
        "3 differences: missing text_prompts.layer_weights (3,); "
        "text_prompts.proj.bias is (3,) instead of (16,); unexpected extra (1,).\n"
        "Use the configuration that the head was trained with."
    )
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())


def test_a_refiner_that_reads_text_needs_text_prompts() -> None:
    with pytest.raises(ValueError, match="text prompts"):
        Head(MaskHead(12, 4), None, SamRefiner(small_sam()))
