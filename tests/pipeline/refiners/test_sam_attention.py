"""Fused attention gives what segment-anything's own modules give, also behind padded prompts."""

from __future__ import annotations

import copy

import pytest
import torch
from segment_anything.modeling.image_encoder import Attention as EncoderAttention
from segment_anything.modeling.transformer import Attention as DecoderAttention
from torch import Tensor

from flmm_core.pipeline.refiners.kernels import FEW_KEYS, padded_prompts
from flmm_core.pipeline.refiners.sam import SamEncoder, SamRefiner
from flmm_core.pipeline.refiners.sam_attention import (
    CellwiseMaskDecoder,
    FusedDecoderAttention,
    FusedEncoderAttention,
    fuse,
)
from flmm_core.pipeline.refiners.sam_model import build_sam


def near(found: Tensor, expected: Tensor, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("size", [(4, 4), (3, 5), (7, 2)])
@pytest.mark.parametrize("relative", [True, False])
def test_the_encoders_attention(size: tuple[int, int], relative: bool) -> None:
    torch.manual_seed(0)
    plain = EncoderAttention(32, num_heads=4, use_rel_pos=relative, input_size=size)
    with torch.no_grad():
        for value in plain.parameters():
            value.normal_(0, 0.3)  # positions start at 0, which would hide them
    x = torch.randn(3, *size, 32)
    fused = copy.deepcopy(plain)
    fuse(torch.nn.ModuleList([fused]))
    assert isinstance(fused, FusedEncoderAttention)
    near(fused(x), plain(x))


def test_the_decoders_attention_and_its_gradient() -> None:
    torch.manual_seed(0)
    plain = DecoderAttention(32, num_heads=4, downsample_rate=2)
    fused = copy.deepcopy(plain)
    fuse(torch.nn.ModuleList([fused]))
    assert isinstance(fused, FusedDecoderAttention)
    q, k, v = torch.randn(2, 5, 32), torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    near(fused(q, k, v), plain(q, k, v))
    for module in (plain, fused):
        module(q, k, v).square().sum().backward()
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert ours.grad is not None
        assert theirs.grad is not None
        near(ours.grad, theirs.grad, 1e-4)


@pytest.mark.parametrize("keys", [3, FEW_KEYS, FEW_KEYS + 1])
def test_the_image_attends_to_prompts_of_any_length_and_not_to_padding(keys: int) -> None:
    torch.manual_seed(0)
    plain = DecoderAttention(32, num_heads=4, downsample_rate=2)
    fused = copy.deepcopy(plain)
    fuse(torch.nn.ModuleList([fused]))
    q, k, v = torch.randn(2, 40, 32), torch.randn(2, keys, 32), torch.randn(2, keys, 32)
    near(fused(q, k, v), plain(q, k, v))
    assert isinstance(fused, FusedDecoderAttention)
    fused.real_keys = torch.arange(keys) < torch.tensor([[keys], [2]])
    found = fused(q, k, v)
    near(found[0], plain(q, k, v)[0])
    near(found[1], plain(q, k[:, :2], v[:, :2])[1])


@pytest.mark.parametrize("multimask", [False, True])
def test_the_decoders_masks_and_their_gradient(multimask: bool) -> None:
    torch.manual_seed(0)
    plain = build_sam("tiny").mask_decoder
    fused = copy.deepcopy(plain)
    fuse(fused)
    assert isinstance(fused, CellwiseMaskDecoder)
    assert fused.state_dict().keys() == plain.state_dict().keys()
    prompts = {
        "image_embeddings": torch.randn(1, 64, 5, 7),
        "image_pe": torch.randn(1, 64, 5, 7),
        "sparse_prompt_embeddings": torch.randn(3, 2, 64),
        "dense_prompt_embeddings": torch.randn(3, 64, 5, 7),
        "multimask_output": multimask,
    }
    expected, found = (decoder(**prompts) for decoder in (plain, fused))
    assert found[0].shape == (3, 3 if multimask else 1, 20, 28)
    for ours, theirs in zip(found, expected, strict=True):
        near(ours, theirs, 1e-4)
    for masks, _ in (expected, found):
        masks.square().mean().backward()
    trained = 0
    for ours, theirs in zip(fused.parameters(), plain.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None)
        if ours.grad is not None and theirs.grad is not None:
            near(ours.grad, theirs.grad, 1e-3)
            trained += 1
    assert trained > 20


@pytest.fixture(scope="module")
def image() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (3, 80, 112), dtype=torch.uint8, generator=generator)


def test_the_tiny_sams_embeddings_stay(image: Tensor) -> None:
    plain = build_sam("tiny").image_encoder
    encoder = SamEncoder(build_sam("tiny"))
    assert sum(isinstance(m, FusedEncoderAttention) for m in encoder.module.modules()) > 0
    with torch.no_grad():
        near(embedding(encoder, image), plain(encoder.square(image)[None]), 1e-4)


def embedding(encoder: SamEncoder, image: Tensor) -> Tensor:
    """(1, E, g, g)."""
    return encoder.encode([image])[0].embedding[None]


def refine(refiner: SamRefiner, image: Tensor, texts: list[Tensor], which: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.randn(len(texts), 12, 16, generator=generator) * 4
    images = SamEncoder(build_sam("tiny")).encode([image])
    with torch.no_grad():
        (masks,) = refiner(images, [coarse[which]], [[texts[i] for i in which]], [(80, 112)])
    return masks.full()


def test_phrases_of_any_lengths_are_decoded_together_as_alone(image: Tensor) -> None:
    refiner = SamRefiner(build_sam("tiny"), text=True).eval()
    generator = torch.Generator().manual_seed(2)
    lengths = (1, 4, 2, 7, 4)
    texts = [torch.randn(n, refiner.prompt_width, generator=generator) for n in lengths]
    calls = []
    hook = refiner.mask_decoder.register_forward_hook(lambda *_: calls.append(1))
    together = refine(refiner, image, texts, list(range(5)))
    hook.remove()
    assert len(calls) == 1
    for index in range(5):
        near(together[index], refine(refiner, image, texts, [index])[0], 1e-4)


def test_what_pads_a_prompt_is_never_read(image: Tensor) -> None:
    refiner = SamRefiner(build_sam("tiny"), text=True).eval()
    decoder, width = refiner.mask_decoder, refiner.prompt_width
    generator = torch.Generator().manual_seed(3)
    tokens = torch.randn(1, 4, width, generator=generator)
    wild = torch.cat([tokens, torch.full((1, 3, width), 1e3)], 1)
    real = torch.tensor([[True] * 4 + [False] * 3])
    shared = {
        "image_embeddings": embedding(SamEncoder(build_sam("tiny")), image),
        "image_pe": refiner.prompt_encoder.get_dense_pe(),
        "dense_prompt_embeddings": torch.zeros(1, width, refiner.grid, refiner.grid),
        "multimask_output": False,
    }
    with torch.no_grad():
        expected, _ = decoder(sparse_prompt_embeddings=tokens, **shared)
        with padded_prompts(decoder.transformer, real, own=5):
            masked, _ = decoder(sparse_prompt_embeddings=wild, **shared)
        unmasked, _ = decoder(sparse_prompt_embeddings=wild, **shared)
    near(masked, expected, 1e-4)
    assert (unmasked - expected).abs().max() > 0.01


def test_half_precision_encodes_in_bfloat16_and_gives_float32(image: Tensor) -> None:
    expected, found = (
        embedding(SamEncoder(build_sam("tiny"), half=half), image) for half in (False, True)
    )
    assert found.dtype == torch.float32
    error = (found - expected).norm() / expected.norm()
    assert 1e-5 < error < 0.02
