"""The joined flow on toy models of the real transformers classes."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from torch import Tensor

from flmm_core.errors import UsageError, WeightsError
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.refiners.sam import NoRefiner, SamRefiner
from flmm_core.pipeline.result import Result, ResultBuilder
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.pipeline.types import WHOLE_PICTURE, AttentionMaps, Grounding, Segment
from flmm_core.training.losses import grounding_loss
from tests.heads import SMALL_SAM, small_sam
from tests.models import CAPTIONS, build, picture

FAMILIES = ("qwen", "llava_next")


def assemble(backbone: Any, *, refiner: Any = None, seed: int = 0, **options: Any) -> Grounder:
    torch.manual_seed(seed)
    head = MaskHead(backbone.attention_channels, 4)
    torch.nn.init.normal_(head.unet.conv_seg.weight)
    prompts = TextPrompts(backbone.num_layers, backbone.hidden_size, SMALL_SAM.out_chans)
    return Grounder(backbone, head, prompts, refiner or SamRefiner(small_sam()), **options)


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


def batch_of(grounder: Grounder) -> list[Any]:
    pictures = picture(48, 48, 1), picture(48, 24, 2)
    return [
        grounder.prepare(image, caption, name=f"sample-{i}")
        for i, (image, caption) in enumerate(zip(pictures, CAPTIONS, strict=True))
    ]


# --- the flow ----------------------------------------------------------------------------------


def test_companions_change_nothing(backbone: Any) -> None:
    grounder = assemble(backbone)
    samples = batch_of(grounder)
    with torch.no_grad():
        together = grounder(grounder.collate(samples))
        alone = [grounder(grounder.collate([sample]))[0] for sample in samples]
    assert [g.logits.shape for g in together] == [(2, 48, 48), (1, 24, 48)]
    for ours, theirs in zip(together, alone, strict=True):
        assert (ours.coarse_logits - theirs.coarse_logits).abs().max() <= 1e-4
        assert (ours.logits - theirs.logits).abs().max() <= 1e-3  # random SAMs amplify rounding
        assert ours.maps.maps.shape[:2] == (len(ours.logits), backbone.attention_channels)


def test_one_step_trains_the_head_and_leaves_the_vlm(backbone: Any) -> None:
    grounder = assemble(backbone)
    samples = batch_of(grounder)
    before = backbone.weights_digest()
    frozen = [value.clone() for value in grounder.refiner.image_encoder.parameters()]
    truths = [torch.rand(2, 48, 48) > 0.7, torch.rand(1, 24, 48) > 0.7]
    optimizer = torch.optim.AdamW([p for p in grounder.parameters() if p.requires_grad], lr=1e-3)
    losses = []
    for _ in range(3):
        loss = grounding_loss(grounder(grounder.collate(samples)), truths).total
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in grounder.parameters() if p.requires_grad)
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert backbone.weights_digest() == before
    after = grounder.refiner.image_encoder.parameters()
    assert all(torch.equal(a, b) for a, b in zip(frozen, after, strict=True))


def test_samples_without_phrases_pass_through(grounder: Grounder) -> None:
    empty = grounder.prepare(picture(48, 48), [Segment("Nothing is here.")])
    (nothing,) = grounder(grounder.collate([empty]))
    assert nothing.logits.shape == (0, 48, 48)
    loss = grounding_loss([nothing], [torch.zeros(0, 48, 48)]).total
    assert loss == 0
    loss.backward()
    with torch.no_grad():
        mixed = grounder(grounder.collate([empty, *batch_of(grounder)]))
    assert [len(g.logits) for g in mixed] == [0, 2, 1]
    assert all(g.logits.isfinite().all() for g in mixed)


def test_without_a_refiner_no_text_prompts_are_kept(qwen: Any) -> None:
    grounder = assemble(qwen, refiner=NoRefiner())
    assert not any(name.startswith("text_prompts") for name, _ in grounder.named_parameters())
    (grounding, _) = grounder(grounder.collate(batch_of(grounder)))
    assert grounding.logits.shape == (2, 48, 48)


def test_preparing_needs_no_weights_and_can_be_sent_to_workers(grounder: Grounder) -> None:
    sample = pickle.loads(pickle.dumps(batch_of(grounder)[0]))
    assert sample.picture.dtype is torch.uint8
    assert sample.image_hw == (48, 48)


# --- what belongs to it ------------------------------------------------------------------------


def test_the_vlm_is_no_part_of_the_module(grounder: Grounder) -> None:
    theirs = {id(value) for value in grounder.backbone.vlm.parameters()}
    assert theirs
    assert not theirs & {id(value) for value in grounder.parameters()}
    assert "backbone" not in dict(grounder.named_modules())


def test_a_heads_file_holds_what_is_trained_and_no_frozen_encoder(grounder: Grounder) -> None:
    state = grounder.trainable_state()
    parts = {".".join(name.split(".")[:2]) for name in state}
    assert parts == {
        "mask_head.unet",
        "text_prompts.layer_weights",
        "text_prompts.proj",
        "refiner.prompt_encoder",
        "refiner.mask_decoder",
    }
    trained = {name for name, value in grounder.named_parameters() if value.requires_grad}
    assert trained <= set(state)


def test_a_state_makes_another_grounder_the_same(qwen: Any) -> None:
    first, second = assemble(qwen, seed=0), assemble(qwen, seed=1)
    second.refiner.image_encoder.load_state_dict(first.refiner.image_encoder.state_dict())
    batch = first.collate(batch_of(first))
    with torch.no_grad():
        wanted = first(batch)[0].logits
        assert not torch.allclose(second(batch)[0].logits, wanted, atol=1e-3)
        second.load_trainable_state(first.trainable_state())
        assert torch.equal(second(batch)[0].logits, wanted)


def test_a_state_that_does_not_fit_is_refused_whole(grounder: Grounder) -> None:
    state = {name: torch.zeros_like(value) for name, value in grounder.trainable_state().items()}
    state["text_prompts.proj.bias"] = torch.zeros(3)
    state["extra"] = torch.zeros(1)
    del state["text_prompts.layer_weights"]
    before = {name: value.clone() for name, value in grounder.trainable_state().items()}
    with pytest.raises(WeightsError) as caught:
        grounder.load_trainable_state(state)
    assert str(caught.value) == (
        "The head's weights do not fit this head.\n"
        "3 differences: missing text_prompts.layer_weights; unexpected extra; "
        "text_prompts.proj.bias is (3,) instead of (16,).\n"
        "Use the configuration that the head was trained with."
    )
    assert all(torch.equal(before[k], v) for k, v in grounder.trainable_state().items())


def test_a_head_of_another_model_is_refused(qwen: Any) -> None:
    with pytest.raises(WeightsError) as caught:
        Grounder(qwen, MaskHead(8, 4), TextPrompts(3, 7, 16), SamRefiner(small_sam()))
    assert "attention channels: head 8, model 12; hidden size: head 7, model 32." in str(
        caught.value
    )
    with pytest.raises(ValueError, match="text prompts"):
        Grounder(qwen, MaskHead(12, 4), None, SamRefiner(small_sam()))


# --- ground ------------------------------------------------------------------------------------


def test_each_phrase_is_grounded_alone(grounder: Grounder) -> None:
    image = picture(48, 24)
    result = grounder.ground(image, ["a red ring", " the star "])
    assert result.phrases == ("a red ring", "the star")
    assert result.logits.shape == result.masks.shape == (2, 24, 48)
    assert result.coarse_logits.shape[0] == 2
    assert not result.logits.requires_grad
    for index, phrase in enumerate(result.phrases):
        sample = grounder.prepare(image, [Segment(phrase, 0), Segment(".")])
        with torch.no_grad():
            (grounding,) = grounder(grounder.collate([sample]))
        assert (grounding.logits[0] - result.logits[index]).abs().max() <= 1e-3
        alone = grounder.ground(image, phrase)
        assert (alone.logits[0] - result.logits[index]).abs().max() <= 1e-3


def test_together_later_phrases_see_earlier_ones(grounder: Grounder) -> None:
    image = picture(48, 24)
    alone = grounder.ground(image, ["a red ring", "the star"])
    together = grounder.ground(image, ["a red ring", "the star"], together=True)
    caption = [Segment("a red ring", 0), Segment("."), Segment("the star", 1), Segment(".")]
    with torch.no_grad():
        (wanted,) = grounder(grounder.collate([grounder.prepare(image, caption)]))
    assert torch.equal(together.logits, wanted.logits)
    assert (together.coarse_logits[0] - alone.coarse_logits[0]).abs().max() <= 1e-4
    assert (together.coarse_logits[1] - alone.coarse_logits[1]).abs().max() > 1e-3


def test_phrases_go_through_in_portions(
    grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    collate = grounder.collate
    monkeypatch.setattr(grounder, "collate", lambda s: (sizes.append(len(s)), collate(s))[1])
    image, phrases = picture(48, 24), ["one", "two", "three"]
    whole = grounder.ground(image, phrases)
    portions = grounder.ground(image, phrases, batch_size=2)
    assert (whole.logits - portions.logits).abs().max() <= 1e-3
    monkeypatch.setattr("flmm_core.pipeline.grounder.PIXELS_AT_ONCE", 48 * 24)
    grounder.ground(image, phrases)
    assert sizes == [3, 2, 1, 1, 1, 1]


def test_a_image_is_encoded_once_for_all_phrases(
    grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    encoder = grounder.refiner.image_encoder
    forward = encoder.forward
    monkeypatch.setattr(encoder, "forward", lambda x: (seen.append(len(x)), forward(x))[1])
    grounder.ground(picture(48, 24), ["one", "two", "three"])
    assert seen == [1]


def test_a_prompt_is_used_once_and_not_kept(grounder: Grounder) -> None:
    image, own = picture(48, 24), grounder.backbone.prompt
    usual = grounder.ground(image, ["it"])
    other = grounder.ground(image, ["it"], "What is this?")
    assert grounder.backbone.prompt == own
    assert (usual.coarse_logits - other.coarse_logits).abs().max() > 1e-4
    assert torch.equal(grounder.ground(image, ["it"]).logits, usual.logits)


def test_no_phrases_give_an_empty_result(grounder: Grounder) -> None:
    for together in (False, True):
        result = grounder.ground(picture(48, 24), [], together=together)
        assert len(result) == 0
        assert result.masks.shape == (0, 24, 48)
        assert result.boxes.shape == (0, 4)
        assert result.scores.shape == (0,)
        assert result.to_coco() == []
        assert result.overlay().size == (48, 24)


@pytest.mark.parametrize("size", [(240, 48), (48, 240), (30, 1), (1, 30)])
def test_narrow_images_give_masks_of_their_size(grounder: Grounder, size: tuple[int, int]) -> None:
    result = grounder.ground(picture(*size), ["it"])
    assert result.logits.shape == (1, size[1], size[0])
    assert result.logits.isfinite().all()
    assert result.scores.isfinite().all()


@pytest.mark.parametrize("phrases", [[""], ["a", "  "], [3]])
def test_an_empty_phrase_is_refused(grounder: Grounder, phrases: Any) -> None:
    with pytest.raises(UsageError, match=f"Phrase {len(phrases) - 1} is empty"):
        grounder.ground(picture(48, 24), phrases)


def test_a_missing_image_is_refused(grounder: Grounder) -> None:
    missing: Any = "ring.png"
    with pytest.raises(UsageError, match="There is no image to ground in"):
        grounder.ground(missing, ["it"])


# --- the result --------------------------------------------------------------------------------


def result_of(
    logits: Tensor,
    phrases: list[str],
    image: Image.Image | None = None,
    confidence: Any = None,
) -> Result:
    image = image or Image.new("RGB", (logits.shape[2], logits.shape[1]), (100, 100, 100))
    maps = AttentionMaps(torch.zeros(1, 1, 2, 2), WHOLE_PICTURE)
    builder = ResultBuilder(image, phrases, confidence)
    for each in logits:
        builder.add(Grounding(coarse_logits=each[None, ::2, ::2], logits=each[None], maps=maps))
    return builder.build()


@pytest.fixture
def known() -> Result:
    """A block, one pixel in the last corner, and nothing."""
    logits = torch.full((3, 12, 20), -2.0)
    logits[0, 2:6, 3:10] = 1.0
    logits[0, 2, 3] = 3.0
    logits[1, 11, 19] = 0.5
    return result_of(logits, ["the block", "é dot", "nothing"])


def test_boxes_and_scores_are_those_of_the_masks(known: Result) -> None:
    assert known.boxes.tolist() == [[3, 2, 10, 6], [19, 11, 20, 12], [0, 0, 0, 0]]
    assert known.boxes.dtype is torch.int64
    block = (27 * torch.tensor(1.0).sigmoid() + torch.tensor(3.0).sigmoid()) / 28
    wanted = torch.stack([block, torch.tensor(0.5).sigmoid(), torch.tensor(0.0)])
    torch.testing.assert_close(known.scores, wanted)
    assert known.masks.sum((1, 2)).tolist() == [28, 1, 0]
    assert known.coarse_logits.shape == (3, 6, 10)


def test_coco_records_survive_json_and_give_the_masks_back(known: Result) -> None:
    records = json.loads(json.dumps(known.to_coco()))
    assert [r["phrase"] for r in records] == ["the block", "é dot", "nothing"]
    assert [r["bbox"] for r in records] == [[3, 2, 7, 4], [19, 11, 1, 1], [0, 0, 0, 0]]
    assert [r["area"] for r in records] == [28, 1, 0]
    assert [r["score"] for r in records] == pytest.approx(known.scores.tolist())
    for record, mask in zip(records, known.masks, strict=True):
        assert np.array_equal(coco_mask.decode(record["segmentation"]).astype(bool), mask.numpy())


def test_without_a_confidence_there_is_no_probability(known: Result) -> None:
    assert known.probabilities.isnan().all()
    assert [record["probability"] for record in known.to_coco()] == [None, None, None]
    with pytest.raises(UsageError) as error:
        known.abstain(0.5)
    assert str(error.value) == (
        "The head gives no probabilities, so it cannot say that a thing is not there.\n"
        "It was trained without validation data.\n"
        "Train it with --val-data."
    )


def test_a_mask_that_is_hardly_right_is_not_there_if_that_is_asked_for(known: Result) -> None:
    logits = 4 * known.logits
    logits[1, 6:, 10:] = 0.5
    sure = result_of(logits, list(known.phrases), confidence=lambda evidence: evidence / 2)
    assert torch.equal(sure.masks, logits > 0)
    assert sure.there.all()
    first, second, third = sure.probabilities.tolist()
    assert 0.5 > first > second > third == 0
    asked = sure.abstain(second + 1e-3)
    assert asked.there.tolist() == [True, False, False]
    assert asked.masks.sum((1, 2)).tolist() == [28, 0, 0]
    assert asked.boxes.tolist() == [[3, 2, 10, 6], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert torch.equal(asked.logits, sure.logits)
    records = asked.to_coco()
    assert [(r["there"], r["area"]) for r in records] == [(True, 28), (False, 0), (False, 0)]
    assert [r["probability"] for r in records] == [first, second, third]
    assert sure.abstain(second).there.tolist() == [True, True, False]
    assert sure.masks.sum() == 28 + 60  # the first result stays as it was


def test_the_overlay_tints_the_masks_and_nothing_else(known: Result) -> None:
    overlay = known.overlay()
    assert overlay.mode == "RGB"
    changed = (np.asarray(overlay) != 100).any(axis=2)
    assert np.array_equal(changed, known.masks.any(dim=0).numpy())
    assert overlay.getpixel((3, 2)) == known.colours[0]  # the outline is opaque
    assert overlay.getpixel((6, 4)) not in ((100, 100, 100), known.colours[0])
    assert overlay.getpixel((19, 11)) == known.colours[1]
    assert len(set(known.colours)) == 3


def test_the_overlay_leaves_the_image_as_it_was() -> None:
    image = Image.new("RGB", (8, 8), (100, 100, 100))
    result_of(torch.ones(1, 8, 8), ["all"], image).overlay()
    assert image.getpixel((4, 4)) == (100, 100, 100)


def test_a_result_that_is_not_full_is_not_given() -> None:
    with pytest.raises(ValueError, match="0 masks for 1 phrases"):
        ResultBuilder(Image.new("RGB", (4, 4)), ["one"]).build()
