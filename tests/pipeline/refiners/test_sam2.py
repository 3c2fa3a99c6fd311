"""SAM 2 as a refiner: transformers' own masks, exact batching, and what is trained."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import Sam2ImageProcessor

from flmm_core.pipeline.refiners import Sam2Options
from flmm_core.pipeline.refiners.sam2 import Sam2Encoder, Sam2Refiner
from flmm_core.pipeline.types import EncodedImage
from tests.heads import small_sam2, small_sam2_model

WIDTH = 16
SIZES = [(60, 40), (33, 90), (64, 64)]


def image(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def blobs(p: int, h: int, w: int, seed: int = 0) -> Tensor:
    """Smooth logits of both signs."""
    coarse = torch.randn(p, 1, 3, 3, generator=torch.Generator().manual_seed(seed)) * 4
    return F.interpolate(coarse, (h, w), mode="bicubic")[:, 0]


def texts(*lengths: int, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(length, WIDTH, generator=generator) for length in lengths]


def batch() -> tuple[Sequence[EncodedImage], list[Tensor], list[list[Tensor]], list[Any]]:
    """Images of different shapes, phrases of different lengths, one sample without any."""
    encoder = Sam2Encoder(small_sam2())
    images = encoder.encode([encoder.prepare(image(*size, seed=i)) for i, size in enumerate(SIZES)])
    coarse = [blobs(3, 16, 24, 1), blobs(1, 24, 9, 2), blobs(0, 8, 8)]
    prompts = [texts(2, 5, 1, seed=1), texts(2, seed=2), []]
    return images, coarse, prompts, [(h, w) for w, h in SIZES]


@torch.no_grad()
def refine(refiner: Sam2Refiner, *inputs: Any) -> list[Tensor]:
    """Per sample, (P, H, W) logits."""
    return [masks.full() for masks in refiner(*inputs)]


# --- against transformers ----------------------------------------------------------------------

PROMPTS: list[dict[str, bool]] = [
    {"mask": True, "box": True},
    {"mask": True, "box": False},
    {"mask": False, "box": True},
    {"mask": True, "box": True, "multimask": True},
]


@pytest.mark.parametrize("options", PROMPTS, ids=str)
def test_masks_are_those_of_transformers_own_forward(options: dict[str, bool]) -> None:
    model, generator = small_sam2_model(), torch.Generator().manual_seed(1)
    model.mask_decoder.dynamic_multimask_via_stability = False
    boxes = torch.tensor([[3.0, 5, 40, 50], [20, 10, 60, 30], [0, 0, 64, 64]])
    masks = torch.randn(3, 1, 16, 16, generator=generator) * 4
    encoder = Sam2Encoder(small_sam2())
    prepared = encoder.prepare(image(60, 40))
    (encoded,) = encoder.encode([prepared])
    refiner = Sam2Refiner(small_sam2(), text=False, **options)
    with torch.no_grad():
        found = refiner._decode(
            encoded.embedding[None], masks, boxes, None, [kind[None] for kind in encoded.details]
        )
        for index in range(len(masks)):  # transformers takes one mask prompt per image
            expected = model(
                pixel_values=encoder.square(prepared)[None],
                input_boxes=boxes[index][None, None] if refiner.box else None,
                input_masks=masks[index][None] if refiner.mask else None,
                multimask_output=refiner.multimask,
            ).pred_masks[0, 0]
            assert expected.std() > 0.1
            assert (found[index] - expected).abs().max() <= 1e-5


def test_text_prompts_are_further_tokens_of_transformers_own_decoder() -> None:
    model = small_sam2_model()
    model.mask_decoder.dynamic_multimask_via_stability = False
    images, coarse, prompts, hw = batch()
    refiner = Sam2Refiner(small_sam2())
    taken: list[Any] = []
    decode = refiner._decode_chunk
    refiner._decode_chunk = lambda *given: taken.append(given) or decode(*given)  # type: ignore
    found = refiner(images[:1], coarse[:1], prompts[:1], hw[:1])[0].low
    ((dense, position, tokens, real, _),) = taken
    assert real.sum(1).tolist() == [3 + 2, 3 + 5, 3 + 1]
    with torch.no_grad():
        for index, words in enumerate(prompts[0]):
            own, *_ = model.mask_decoder(
                image_embeddings=dense[index][None],
                image_positional_embeddings=position,
                sparse_prompt_embeddings=torch.cat([tokens[index, :3], words])[None, None],
                dense_prompt_embeddings=torch.zeros_like(dense[:1]),
                multimask_output=False,
                high_resolution_features=[kind[None] for kind in images[0].details],
            )
            assert (found[index] - own[0, 0]).abs().max() <= 1e-5


def test_images_are_prepared_as_transformers_does() -> None:
    encoder = Sam2Encoder(small_sam2())
    processor = Sam2ImageProcessor(size={"height": 64, "width": 64})
    for size in [(640, 480), (33, 500), (50, 10), (1, 1)]:
        prepared = encoder.prepare(image(*size))
        assert prepared.dtype is torch.uint8
        theirs = processor(image(*size), return_tensors="pt").pixel_values[0]
        # Pillow and torchvision may round to neighboring levels.
        apart = (encoder.square(prepared) - theirs).abs()
        assert apart.max() <= 1.01 / 57.12
        assert apart.mean() <= 0.3 / 57.12


def test_places_on_the_image_are_places_on_the_square() -> None:
    refiner = Sam2Refiner(small_sam2())
    coarse = torch.full((2, 10, 20), -9.0)
    coarse[0, 2:4, 5:10] = 9.0
    boxes = refiner._box_prompts(coarse, (64, 64), (100, 200))
    assert (boxes[0] - torch.tensor([16, 12.8, 32, 25.6])).abs().max() <= 0.64
    assert boxes[1].tolist() == [0, 0, 64, 64]
    prompts = refiner._mask_prompts(coarse, (64, 64))
    assert prompts.shape == (2, 1, 16, 16)
    rows, columns = (prompts[0, 0] > 0).nonzero().T
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (3, 5, 4, 7)


# --- batches -----------------------------------------------------------------------------------

OPTIONS: list[dict[str, bool]] = [
    {},
    {"multimask": True},
    {"text": False},
    {"mask": False},
    {"box": False},
    {"mask": False, "box": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_companions_change_nothing(options: dict[str, bool]) -> None:
    refiner = Sam2Refiner(small_sam2(), **options)
    images, coarse, prompts, hw = batch()
    together = refine(refiner, images, coarse, prompts, hw)
    for index, logits in enumerate(together):
        assert logits.shape == (len(coarse[index]), *hw[index])
        assert logits.isfinite().all()
        (alone,) = refine(refiner, *([x[index]] for x in (images, coarse, prompts, hw)))
        assert not logits.numel() or (logits - alone).abs().max() <= 1e-4
    one = [[images[0]], [coarse[0][1:2]], [prompts[0][1:2]], [hw[0]]]
    assert (together[0][1:2] - refine(refiner, *one)[0]).abs().max() <= 1e-4


@pytest.mark.parametrize("samples", [1, 3])
def test_one_call_decodes_all_masks(samples: int, monkeypatch: pytest.MonkeyPatch) -> None:
    refiner, calls = Sam2Refiner(small_sam2()), []
    refiner.mask_decoder.transformer.register_forward_pre_hook(
        lambda _, args, given: calls.append(len(given["point_embeddings"])), with_kwargs=True
    )
    refine(refiner, *(each[:samples] for each in batch()))
    assert calls == [3 if samples == 1 else 4]


def test_every_kind_of_prompt_and_detail_matters() -> None:
    refiner = Sam2Refiner(small_sam2())
    images, coarse, prompts, hw = (each[:1] for each in batch())
    (first,) = refine(refiner, images, coarse, prompts, hw)
    embedding, fine, middle = images[0].tensors
    changed = [
        (images, [coarse[0] ** 3], prompts),  # the same boxes
        (images, coarse, [[words * 2 for words in prompts[0]]]),
        ([images[0].with_tensors([embedding, fine.flip(2), middle])], coarse, prompts),
        ([images[0].with_tensors([embedding, fine, middle.flip(2)])], coarse, prompts),
        ([images[0].with_tensors([embedding.flip(2), fine, middle])], coarse, prompts),
    ]
    for other in changed:
        assert not torch.allclose(first, refine(refiner, *other, hw)[0], atol=1e-3)


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_that_is_trainable_gets_a_gradient_and_nothing_else(options: dict[str, bool]) -> None:
    refiner = Sam2Refiner(small_sam2(), **options).train()
    images, coarse, prompts, hw = batch()
    coarse = [logits.requires_grad_() for logits in coarse]
    refined = refiner(images, coarse, prompts, hw)
    sum(masks.full().square().sum() for masks in refined).backward()
    for name, value in refiner.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name
    assert (coarse[0].grad is not None) == options.get("mask", True)


def test_training_and_evaluation_give_the_same_masks() -> None:
    refiner, inputs = Sam2Refiner(small_sam2()), batch()
    for ours, theirs in zip(
        refine(refiner.eval(), *inputs), refine(refiner.train(), *inputs), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_under_autocast_places_are_not_rounded_and_masks_are_near() -> None:
    refiner, inputs = Sam2Refiner(small_sam2()), batch()
    masks, boxes = blobs(2, 16, 16)[:, None], torch.tensor([[1.0, 2, 30, 40], [5, 5, 60, 9]])
    exact, places = refine(refiner, *inputs), []
    embed = refiner._embed_prompts
    refiner._embed_prompts = lambda *given: places.append(embed(*given)) or places[-1]  # type: ignore
    with torch.autocast("cpu", torch.bfloat16):
        found = refine(refiner, *inputs)
        refiner._decode(torch.zeros(1, WIDTH, 4, 4), masks, boxes, texts(1, 1), [
            torch.zeros(1, 2, 16, 16), torch.zeros(1, 4, 8, 8)
        ])  # fmt: skip
    expected = embed(masks, boxes)
    assert all(torch.equal(one, two) for one, two in zip(places[-1], expected, strict=True))
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype is torch.float32
        assert not len(ours) or (ours - theirs).abs().mean() <= 0.1 * theirs.abs().mean()


def test_half_precision_encodes_in_bfloat16_and_gives_float32() -> None:
    full, half = (Sam2Encoder(small_sam2(), half=half) for half in (False, True))
    prepared = full.prepare(image(60, 40))
    (exact,), (near,) = full.encode([prepared]), half.encode([prepared])
    for one, two in zip(exact.tensors, near.tensors, strict=True):
        assert two.dtype is torch.float32
        assert 0 < (one - two).abs().mean() <= 0.05 * one.abs().mean()


def test_the_halves_share_no_weight_and_keep_transformers_names() -> None:
    parts = small_sam2()
    encoder, refiner = Sam2Encoder(parts), Sam2Refiner(parts)
    assert not encoder.module.training
    assert not any(value.requires_grad for value in encoder.module.parameters())
    frozen = {id(value) for value in encoder.module.parameters()}
    assert not frozen & {id(value) for value in refiner.parameters()}
    whole = small_sam2_model().state_dict()
    kept = {
        name
        for name in whole
        if name.startswith(("prompt_encoder.", "mask_decoder.", "shared_image_embedding."))
        and ".conv_s" not in name
    }
    assert refiner.state_dict().keys() == kept
    (encoded,) = encoder.encode([encoder.prepare(image(9, 9))])
    shapes = (encoder.embedding_shape, *encoder.detail_shapes)
    assert [tuple(each.shape) for each in encoded.tensors] == list(shapes)
    assert encoder.size == sum(each.numel() for each in encoded.tensors)


def test_a_pickled_encoder_prepares_images_without_its_weights() -> None:
    encoder = Sam2Encoder(small_sam2())
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 5000
    prepared = pickle.loads(pickled).prepare(image(60, 40))
    assert torch.equal(prepared, encoder.prepare(image(60, 40)))


def test_refiners_of_the_same_parts_do_not_freeze_each_others() -> None:
    parts = small_sam2()
    Sam2Refiner(parts, box=False, mask=False)
    again = Sam2Refiner(parts)
    assert again.prompt_encoder.point_embed.weight.requires_grad
    assert all(value.requires_grad for value in again.prompt_encoder.mask_embed.parameters())


def test_no_prompt_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one kind of prompt"):
        Sam2Options(mask=False, box=False, text=False)
