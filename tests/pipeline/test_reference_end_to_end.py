"""Every stage of the whole flow, and its gradients, against the original's numbers.

A three-layer LLaMA stands for the VLM. The recorder is compared on it; the later stages start
from the reference's own attention, because the random SAM makes 1e-3 of a difference of 1e-6.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.recorder import AttentionRecorder
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.refiners.sam import SamEncoder, SamRefiner
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.pipeline.types import Features, Grounding, ImageView, Trace
from flmm_core.training.losses import GroundingLoss, grounding_loss, processed_truth
from tests.heads import (
    arrays,
    reference_mask_head,
    reference_sam,
    require_originals_refined,
    tensors,
)

LAYERS, HEADS, HIDDEN, PHRASES = 3, 8, 64, 3
GRID = torch.arange(3, 3 + 576).view(24, 24)
PADDED = (-64 / 255, 0.0, (255 + 65) / 255, 1.0)
"""The image is 255 of the 384 rows that the VLM saw, with 64 of padding above, 65 below."""

IMAGE_HW = (333, 500)


def recorded(numbers: dict[str, Tensor]) -> Trace:
    """The reference's own attention and hidden states."""
    rows, row_phrase = wanted_rows(numbers)
    rows = rows - numbers["caption_start"]
    attention = numbers["attentions"][:, :, rows]  # (L, N, T, M)
    pooled = [attention[:, :, row_phrase == p].mean(2) for p in range(PHRASES)]
    return Trace(
        attention=torch.stack(pooled, dim=2),
        hidden=numbers["hidden_states_all"][1:, rows],
        row_phrase=row_phrase,
        views=(ImageView("image", GRID, PADDED),),
        image_hw=IMAGE_HW,
    )


def wanted_rows(numbers: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(T,) places of the phrases' tokens, phrase after phrase, and (T,) their phrases."""
    mask_ids = numbers["mask_ids"]
    rows = torch.cat([(mask_ids == p).nonzero().flatten() for p in range(PHRASES)])
    return rows, mask_ids[rows]


@pytest.fixture(scope="module")
def numbers() -> dict[str, Tensor]:
    return arrays("e2e_landscape")


@pytest.fixture(scope="module")
def flow(numbers: dict[str, Tensor]) -> tuple[Head, Grounding, GroundingLoss]:
    """The head after one forward and backward."""
    prompts = TextPrompts(LAYERS, HIDDEN, 32)
    with torch.no_grad():
        prompts.layer_weights.copy_(numbers["text_layer_weights"])
        prompts.proj.weight.copy_(numbers["text_proj_weight"])
        prompts.proj.bias.copy_(numbers["text_proj_bias"])
    sam = reference_sam()
    encoder = SamEncoder(sam)
    head = Head(
        reference_mask_head(paper_rounding=True), prompts, SamRefiner(sam, paper_rounding=True)
    )
    image = Image.fromarray(arrays("sam_wrapper_inputs")["image"].numpy())
    (encoded,) = encoder.encode([encoder.prepare(image)])
    trace = recorded(numbers)
    maps = attention_maps(trace)
    features = Features(maps, trace.hidden, trace.row_phrase, encoded, trace.image_hw)
    (grounding,) = head([features])
    loss = grounding_loss([grounding], [numbers["gt_masks"]], nearest=True)
    loss.total.backward()
    return head, grounding, loss


def test_the_recorder_reads_the_originals_attention(numbers: dict[str, Tensor]) -> None:
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=HIDDEN,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=1024,
        rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    decoder = transformers.LlamaModel(config).eval().requires_grad_(False)
    decoder.load_state_dict(tensors("e2e_llama_tiny_state"))
    rows, row_phrase = wanted_rows(numbers)
    with AttentionRecorder(decoder).record([rows], [GRID.flatten()], [row_phrase]) as recording:
        decoder(inputs_embeds=numbers["inputs_embeds"][None], use_cache=False)
    wanted = recorded(numbers)
    assert (recording.attention[0] - wanted.attention).abs().max() <= 1e-5
    assert (recording.hidden[0] - wanted.hidden).abs().max() <= 1e-4


def test_layers_are_mixed_as_in_the_original(
    flow: tuple[Head, Grounding, GroundingLoss], numbers: dict[str, Tensor]
) -> None:
    head, _, _ = flow
    assert head.text_prompts is not None
    with torch.no_grad():
        mixed = head.text_prompts.mix(numbers["hidden_states_all"][1:])
    assert (mixed - numbers["out_hidden_states"]).abs().max() <= 1e-5


def test_coarse_logits_are_the_originals(
    flow: tuple[Head, Grounding, GroundingLoss], numbers: dict[str, Tensor]
) -> None:
    _, grounding, _ = flow
    assert (grounding.coarse_logits - numbers["out_pred_masks"]).abs().max() <= 1e-4


def test_refined_logits_are_the_originals(
    flow: tuple[Head, Grounding, GroundingLoss],
) -> None:
    _, grounding, _ = flow
    assert grounding.logits.shape == (PHRASES, *IMAGE_HW)
    require_originals_refined(grounding.logits)


def test_losses_are_the_originals(
    flow: tuple[Head, Grounding, GroundingLoss], numbers: dict[str, Tensor]
) -> None:
    _, _, loss = flow
    cross_entropy, dice, _, _, sam_cross_entropy, sam_dice, *_ = numbers["loss_values"].tolist()
    assert loss.coarse_cross_entropy.item() == pytest.approx(cross_entropy, abs=1e-4)
    assert loss.coarse_dice.item() == pytest.approx(dice, abs=1e-4)
    assert loss.refined_cross_entropy.item() == pytest.approx(sam_cross_entropy, abs=1e-4)
    assert loss.refined_dice.item() == pytest.approx(sam_dice, abs=1e-4)


def test_truth_is_resized_through_the_size_that_the_vlm_sees(
    flow: tuple[Head, Grounding, GroundingLoss], numbers: dict[str, Tensor]
) -> None:
    """333 x 500 pixels -> 255 x 384 -> the logits' size; the fixture begins at 255 x 384."""
    _, grounding, wanted = flow
    rows, columns = (
        np.searchsorted(np.arange(seen) * whole // seen, np.arange(whole), side="right") - 1
        for seen, whole in zip((255, 384), IMAGE_HW, strict=True)
    )
    whole = numbers["gt_masks"][:, rows][:, :, columns]
    seen = processed_truth(whole, grounding.maps.image_box, 384)
    assert torch.equal(seen, numbers["gt_masks"].float())
    with torch.no_grad():
        loss = grounding_loss([grounding], [seen], nearest=True)
        direct = grounding_loss([grounding], [whole], nearest=True)
    assert loss.total.item() == pytest.approx(wanted.total.item(), abs=1e-6)
    assert abs(direct.total.item() - wanted.total.item()) > 1e-4


def test_gradients_are_the_originals(
    flow: tuple[Head, Grounding, GroundingLoss], numbers: dict[str, Tensor]
) -> None:
    head, _, _ = flow
    ours = {name: value.grad for name, value in head.named_parameters()}
    for theirs, name in {
        "text_layer_weights": "text_prompts.layer_weights",
        "text_proj.weight": "text_prompts.proj.weight",
        "mask_head.conv_seg.weight": "mask_head.unet.conv_seg.weight",
        "mask_head.encoder.0.0.convs.0.conv.weight": (
            "mask_head.unet.encoder.0.0.convs.0.conv.weight"
        ),
        "mask_head.decoder.1.conv_block.convs.1.gn.weight": (
            "mask_head.unet.decoder.1.conv_block.convs.1.gn.weight"
        ),
        "sam.model.mask_decoder.mask_tokens.weight": "refiner.mask_decoder.mask_tokens.weight",
        "sam.model.prompt_encoder.mask_downscaling.0.weight": (
            "refiner.prompt_encoder.mask_downscaling.0.weight"
        ),
    }.items():
        wanted = numbers[f"grad.{theirs}"]
        grad = ours[name]
        assert grad is not None
        # float noise behind a random SAM: 3e-4 to 1.1e-3 without AVX-512
        assert (grad - wanted).abs().max() <= 3e-3 * wanted.abs().max(), name
    norm = torch.stack([grad.norm() for grad in ours.values() if grad is not None]).norm()
    assert norm.item() == pytest.approx(numbers["grad_total_norm"].item(), rel=1e-3)
