"""SAM as a refiner: the original's numbers, exact batching, and images of every shape."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask
from segment_anything.modeling import Sam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor
from torch.nn import functional as F

from flmm_core.pipeline.refiners import SamOptions
from flmm_core.pipeline.refiners.none import NoRefiner
from flmm_core.pipeline.refiners.sam import SamEncoder, SamRefiner
from flmm_core.pipeline.refiners.sam_model import SamParts, SamShape, build_sam, build_untrained_sam
from flmm_core.pipeline.types import EncodedImage
from flmm_core.spec import RefinerOptions
from tests.heads import SMALL_SAM, arrays, reference_sam, small_sam

WIDTH = SMALL_SAM.out_chans


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


def refine(refiner: Any, *inputs: Any) -> tuple[Tensor, ...]:
    """Per sample, (P, H, W) logits."""
    return tuple(masks.full() for masks in refiner(*inputs))


@pytest.fixture
def refiner() -> SamRefiner:
    return SamRefiner(small_sam())


@pytest.fixture
def encoder() -> SamEncoder:
    return SamEncoder(small_sam())


def encoded(*sizes: tuple[int, int], shape: SamShape = SMALL_SAM) -> tuple[EncodedImage, ...]:
    """Images of (width, height) through the small SAM's encoder."""
    encoder = SamEncoder(small_sam(shape))
    return encoder.encode([encoder.prepare(image(*size, seed=i)) for i, size in enumerate(sizes)])


def batch() -> tuple[Sequence[EncodedImage], list[Tensor], list[list[Tensor]], list[Any]]:
    """Images of different shapes, phrases of different lengths, one sample without any."""
    sizes = [(60, 40), (33, 90), (50, 10), (64, 64)]
    images = encoded(*sizes)
    coarse = [blobs(3, 16, 24, 1), blobs(1, 24, 9, 2), blobs(2, 4, 20, 3), blobs(0, 8, 8)]
    prompts = [texts(2, 5, 1, seed=1), texts(2, seed=2), texts(1, 2, seed=3), []]
    return images, coarse, prompts, [(h, w) for w, h in sizes]


# --- against the original ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def original() -> SamParts:
    return reference_sam()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("all", {}),
        ("box_only", {"mask": False, "text": False}),
        ("mask_only", {"box": False, "text": False}),
        ("text_mask", {"box": False}),
        ("one_empty", {}),
    ],
)
def test_logits_are_the_originals(original: SamParts, kind: str, options: dict[str, bool]) -> None:
    given = arrays("sam_wrapper_inputs")
    refiner = SamRefiner(original, paper_rounding=True, **options)
    encoder = SamEncoder(original)
    images = encoder.encode([encoder.prepare(Image.fromarray(given["image"].numpy()))])
    coarse = given["coarse_one_empty" if kind == "one_empty" else "coarse"]
    words = [given[f"text_{number}"] for number in range(3)]
    with torch.no_grad():
        (logits,) = refine(refiner, images, [coarse], [words], [(333, 500)])
    assert logits.shape == (3, 333, 500)
    apart = (logits[:, ::8, ::8] - arrays("sam_wrapper_outputs")[kind]).abs()
    # The reference itself lies up to 2e-3 from a float64 run: its SAM is random and amplifies.
    assert apart.mean() <= 1e-4
    assert apart.max() <= 5e-3


def test_all_masks_of_the_sample_set_the_padding_only_in_the_paper(original: SamParts) -> None:
    coarse = torch.stack([torch.full((4, 6), 3.0), torch.full((4, 6), -5.0)])
    hw = (683, 1024)
    ours = SamRefiner(original)._mask_prompts(coarse, hw)
    papers = SamRefiner(original, paper_rounding=True)._mask_prompts(coarse, hw)
    assert ours.shape == papers.shape == (2, 1, 256, 256)
    assert [ours[0, 0, -1, 0], ours[1, 0, -1, 0]] == [-1, -5]  # at most -1
    assert [papers[0, 0, -1, 0], papers[1, 0, -1, 0]] == [-5, -5]
    assert torch.equal(ours[:, :, :170], papers[:, :, :170])


# --- prompts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (333, 500), (50, 10), (1, 1), (1, 900), (65, 64)])
def test_images_are_resized_as_segment_anything_does(
    encoder: SamEncoder, size: tuple[int, int]
) -> None:
    original = image(*size)
    prepared = encoder.prepare(original)
    assert prepared.dtype is torch.uint8
    assert max(prepared.shape) == 64
    if min(size) / max(size) * 64 >= 0.5:  # else segment-anything asks for a side of 0 pixels
        theirs = ResizeLongestSide(64).apply_image(np.asarray(original))
        assert np.array_equal(prepared.permute(1, 2, 0).numpy(), theirs)


def test_images_of_any_mode_are_read_as_rgb(encoder: SamEncoder) -> None:
    gray = Image.new("L", (20, 10), 77)
    assert torch.equal(encoder.prepare(gray), torch.full((3, 32, 64), 77, dtype=torch.uint8))


def test_pixels_are_normalized_as_segment_anything_does(encoder: SamEncoder) -> None:
    parts = small_sam()
    theirs = Sam(parts.image_encoder, parts.prompt_encoder, parts.mask_decoder)
    prepared = encoder.prepare(image(60, 40))
    torch.testing.assert_close(encoder.square(prepared), theirs.preprocess(prepared))


def test_boxes_are_tight_in_the_image_and_whole_where_empty(refiner: SamRefiner) -> None:
    coarse = torch.full((3, 10, 20), -9.0)
    coarse[0, 2:4, 5:9] = 9.0
    coarse[1, 9, 19] = 9.0
    boxes = refiner._box_prompts(coarse, (32, 64), (100, 200))  # 10 pixels a cell
    assert (boxes[0] - torch.tensor([50, 20, 90, 40]) * 0.32).abs().max() <= 0.32
    assert (boxes[1] - torch.tensor([190, 90, 200, 100]) * 0.32).abs().max() <= 0.32
    assert boxes[2].tolist() == [0, 0, 64, 32]


@pytest.mark.parametrize("kind", ["mask", "box", "text"])
def test_every_kind_of_prompt_matters_only_when_it_is_used(kind: str) -> None:
    options = dict.fromkeys(("mask", "box", "text"), False)
    used = SamRefiner(small_sam(), **(options | {kind: True}))
    unused = SamRefiner(small_sam(), **(dict.fromkeys(options, True) | {kind: False}))
    images, hw = encoded((60, 40)), [(40, 60)]
    coarse = [blobs(1, 16, 24)]
    if kind == "text":
        other_coarse, other_texts = coarse, texts(3, seed=9)
    elif kind == "mask":  # same sign everywhere: the same box
        other_coarse, other_texts = [coarse[0] * 3], texts(3)
    else:  # another box; the mask prompt is the same where it is not used
        other_coarse, other_texts = [-coarse[0]], texts(3)

    def run(refiner: SamRefiner, logits: list[Tensor], words: list[Tensor]) -> Tensor:
        with torch.no_grad():
            return refine(refiner, images, logits, [words], hw)[0]

    first = run(used, coarse, texts(3))
    assert not torch.allclose(first, run(used, other_coarse, other_texts), atol=1e-3)
    if kind != "box":
        first = run(unused, coarse, texts(3))
        assert torch.equal(first, run(unused, other_coarse, other_texts))


def test_no_prompt_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one kind of prompt"):
        SamOptions(mask=False, box=False, text=False)


# --- batches -----------------------------------------------------------------------------------

OPTIONS: list[dict[str, bool]] = [
    {},
    {"multimask": True},
    {"paper_rounding": True},
    {"text": False},
    {"mask": False},
    {"box": False},
    {"mask": False, "box": False},
    {"box": False, "text": False},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_companions_change_nothing(options: dict[str, bool]) -> None:
    refiner = SamRefiner(small_sam(), **options)
    images, coarse, prompts, hw = batch()
    with torch.no_grad():
        together = refine(refiner, images, coarse, prompts, hw)
        for index, logits in enumerate(together):
            assert logits.shape == (len(coarse[index]), *hw[index])
            assert logits.isfinite().all()
            (alone,) = refine(refiner, *([x[index]] for x in (images, coarse, prompts, hw)))
            assert not logits.numel() or (logits - alone).abs().max() <= 1e-4
    if not options.get("paper_rounding"):
        one = [[images[0]], [coarse[0][1:2]], [prompts[0][1:2]], [hw[0]]]
        with torch.no_grad():
            (alone,) = refine(refiner, *one)
        assert (together[0][1:2] - alone).abs().max() <= 1e-4


def test_one_call_decodes_all_masks(refiner: SamRefiner, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    forward = refiner.mask_decoder.forward

    def count(**kwargs: Any) -> Any:
        calls.append(len(kwargs["sparse_prompt_embeddings"]))
        return forward(**kwargs)

    monkeypatch.setattr(refiner.mask_decoder, "forward", count)
    refiner(*batch())
    assert calls == [6]  # phrases of 5; 1, 1; 2, 2, 2 tokens


def encode_counting(
    encoder: SamEncoder, images: Sequence[Tensor], monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[EncodedImage, ...], list[int]]:
    """Embeddings, and how many images each call of the model saw."""
    seen: list[int] = []
    forward = encoder.module.forward
    monkeypatch.setattr(encoder.module, "forward", lambda x: (seen.append(len(x)), forward(x))[1])
    return encoder.encode(images), seen


def test_images_are_encoded_together(encoder: SamEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (encoder.prepare(image(60, 40, seed)) for seed in (0, 1))
    found, seen = encode_counting(encoder, [first, second], monkeypatch)
    assert seen == [2]
    assert encoder.embedding_shape == (WIDTH, 8, 8)
    assert [x.embedding.shape for x in found] == [encoder.embedding_shape] * 2
    assert [x.input_hw for x in found] == [(43, 64)] * 2
    assert not torch.equal(found[0].embedding, found[1].embedding)


def test_large_images_are_encoded_one_at_a_time(
    encoder: SamEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flmm_core.pipeline.refiners.encoding.ENCODED_PIXELS", 64 * 64)
    images = [encoder.prepare(image(60, 40, seed)) for seed in range(3)]
    assert encode_counting(encoder, images, monkeypatch)[1] == [1, 1, 1]


@pytest.mark.parametrize("p", [0, 1])
def test_a_batch_without_masks_gives_none(p: int) -> None:
    refiner = SamRefiner(small_sam())
    coarse = blobs(p, 8, 8)
    (logits,) = refine(refiner, encoded((9, 9)), [coarse], [texts(*[2] * p)], [(9, 9)])
    assert logits.shape == (p, 9, 9)


def test_the_candidate_nearest_to_the_coarse_mask_wins_at_the_images_size(
    original: SamParts,
) -> None:
    """Candidates, enlarging and IoUs are segment-anything's, Pillow's and pycocotools' own."""
    given = arrays("sam_wrapper_inputs")
    sam = Sam(original.image_encoder, original.prompt_encoder, original.mask_decoder).eval()
    refiner = SamRefiner(original, multimask=True, paper_rounding=True)
    offered: list[Tensor] = []
    decoder: Any = refiner.mask_decoder
    hook = decoder.register_forward_hook(lambda *call: offered.append(call[2][0]))
    encoder = SamEncoder(original)
    images = encoder.encode([encoder.prepare(Image.fromarray(given["image"].numpy()))])
    words = [given[f"text_{number}"] for number in range(3)]
    with torch.no_grad():
        (logits,) = refine(refiner, images, [given["coarse"]], [words], [(333, 500)])
        hook.remove()
        candidates = sam.postprocess_masks(torch.cat(offered), images[0].input_hw, (333, 500))
    probabilities = given["coarse"].sigmoid().numpy()
    for coarse, each, mask in zip(probabilities, candidates, logits, strict=True):
        wide = Image.fromarray(coarse).resize((500, 333), Image.Resampling.BILINEAR)
        masks = np.dstack([*(each > 0), np.asarray(wide) > 0.5]).astype(np.uint8)
        *codes, wanted = coco_mask.encode(np.asfortranarray(masks))
        ious = coco_mask.iou(codes, [wanted], [0])[:, 0]
        first, second = sorted(ious)[:-3:-1]
        assert first - second > 1e-3  # no tie
        assert (mask - each[ious.argmax()]).abs().max() <= 1e-4


# --- training ----------------------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_all_that_is_trainable_gets_a_gradient_and_nothing_else(options: dict[str, bool]) -> None:
    refiner = SamRefiner(small_sam(), **options).train()
    images, coarse, prompts, hw = batch()
    coarse = [logits.requires_grad_() for logits in coarse]
    prompts = [[words.requires_grad_() for words in sample] for sample in prompts]
    refined = refine(refiner, images, coarse, prompts, hw)
    sum(logits.square().sum() for logits in refined).backward()
    for name, value in refiner.named_parameters():
        assert (value.grad is not None) == value.requires_grad, name
    # the box is detached, so the coarse logits learn through the mask prompt only
    assert (coarse[0].grad is not None) == options.get("mask", True)
    assert (prompts[0][0].grad is not None) == options.get("text", True)


def test_places_are_not_rounded_under_autocast(refiner: SamRefiner) -> None:
    exact: list[Tensor] = []
    forward = refiner.mask_decoder.forward

    def keep(**kwargs: Any) -> Any:
        exact.append(kwargs["sparse_prompt_embeddings"][:, :2])
        exact.append(kwargs["image_pe"])
        return forward(**kwargs)

    refiner.mask_decoder.forward = keep
    inputs = encoded((60, 40)), [blobs(1, 16, 24)], [texts(2)], [(40, 60)]
    with torch.no_grad():
        refiner(*inputs)
        with torch.autocast("cpu", torch.bfloat16):
            (logits,) = refine(refiner, *inputs)
    assert logits.dtype is torch.float32
    torch.testing.assert_close(exact[0], exact[2])
    torch.testing.assert_close(exact[1], exact[3])


def test_the_image_encoder_is_frozen_and_not_part_of_the_refiner(
    encoder: SamEncoder, refiner: SamRefiner
) -> None:
    assert not encoder.module.training
    assert not any(value.requires_grad for value in encoder.module.parameters())
    assert {key.split(".")[0] for key in refiner.state_dict()} == {"prompt_encoder", "mask_decoder"}


def test_a_pickled_encoder_prepares_images_without_its_weights(encoder: SamEncoder) -> None:
    pickled = pickle.dumps(encoder)
    assert len(pickled) < 5000
    prepared = pickle.loads(pickled).prepare(image(60, 40))
    assert torch.equal(prepared, encoder.prepare(image(60, 40)))


def test_loading_draws_the_random_numbers_of_all_parts() -> None:
    """The weights of a fresh head, which are drawn next, must stay those of a seed."""
    shape = build_sam("tiny").shape
    torch.manual_seed(0)
    build_untrained_sam(shape)
    expected = torch.rand(1)
    torch.manual_seed(0)
    SamRefiner.load(SamOptions())
    assert torch.equal(torch.rand(1), expected)


def test_options_reach_the_halves() -> None:
    options = SamOptions(mask=False, text=False, multimask=True, half=True)
    encoder, refiner = SamRefiner.load(options, paper_rounding=True)
    assert encoder.half
    assert (refiner.mask, refiner.box, refiner.uses_text) == (False, True, False)
    assert refiner.multimask
    assert refiner.paper_rounding


def test_refiners_of_the_same_parts_do_not_freeze_each_others() -> None:
    sam = small_sam()
    SamRefiner(sam, box=False)
    again = SamRefiner(sam)
    assert all(p.weight.requires_grad for p in again.prompt_encoder.point_embeddings[2:])


# --- no refiner --------------------------------------------------------------------------------


def test_without_a_refiner_the_coarse_logits_are_enlarged() -> None:
    encoder, refiner = NoRefiner.load(RefinerOptions())
    assert encoder is None
    assert not refiner.uses_text
    coarse = [blobs(2, 4, 4), torch.zeros(0, 4, 4)]
    first, second = refine(refiner, [None, None], coarse, (), [(30, 50), (8, 8)])
    wanted = F.interpolate(coarse[0][:, None], (30, 50), mode="bilinear", align_corners=False)
    torch.testing.assert_close(first, wanted[:, 0])
    assert second.shape == (0, 8, 8)


def test_a_sam_of_other_sizes_works() -> None:
    shape = dataclasses.replace(SMALL_SAM, image_size=128, patch_size=16)
    refiner = SamRefiner(small_sam(shape))
    images = encoded((9, 30), shape=shape)
    (logits,) = refine(refiner, images, [blobs(2, 5, 2)], [texts(1, 3)], [(30, 9)])
    assert logits.shape == (2, 30, 9)
