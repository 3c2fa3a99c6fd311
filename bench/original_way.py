"""The flow as F-LMM runs it, written anew from what it computes: what the ratios compare with.

Eager attention, every layer's attention and hidden states kept, one sample at a time, one mask at
a time. Where there is a choice it is made in its favour: no language-model head, no KV cache, rows
are chosen before columns, so that no (S, M) slice is copied, and an image is encoded once for all
its masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.batch import place_rows
from flmm_core.pipeline.boxes import tight_boxes
from flmm_core.pipeline.grounder import Grounder, GrounderInputs
from flmm_core.pipeline.refiners.sam import SamRefiner
from flmm_core.pipeline.refiners.sam_attention import FusedUpscaling, fuse
from flmm_core.pipeline.types import BackboneInputs, EncodedImage, Grounding, Trace


@torch.no_grad()
def trace(backbone: Backbone, sample: BackboneInputs) -> Trace:
    """What `Backbone.trace` gives of one sample. The VLM must run eager attention."""
    batch = backbone.collate([sample])
    placed = place_rows(batch)
    rows, columns, groups = placed.rows[0], placed.columns[0], placed.groups[0]
    output = backbone.vlm.model(
        **backbone._to_vlm(batch.tensors),
        use_cache=False,
        output_attentions=True,
        output_hidden_states=True,
    )
    device = output.hidden_states[0].device
    rows, columns, groups = rows.to(device), columns.to(device), groups.to(device)
    attention = []
    for layer in output.attentions:
        chosen = layer[0][:, rows][..., columns].float()  # (N, T, M)
        phrases = [chosen[:, groups == p].mean(1) for p in range(len(sample.phrase_rows))]
        attention.append(torch.stack(phrases, dim=1))  # (N, P, M)
    return Trace(
        attention=torch.stack(attention),
        hidden=torch.stack([layer[0, rows].float() for layer in output.hidden_states[1:]]),
        row_phrase=groups,
        views=sample.views,
        image_hw=sample.image_hw,
    )


def refine(
    refiner: SamRefiner,
    picture: Tensor | EncodedImage,
    coarse: Tensor,
    prompts: Sequence[Tensor],
    image_hw: tuple[int, int],
) -> Tensor:
    """(P, H, W) logits, the image encoded once and one mask after the other decoded."""
    (encoded,) = refiner.read([picture])
    inputs_hw, embedding = encoded.input_hw, encoded.embedding[None]
    masks = []
    for index, logits in enumerate(coarse):
        mask = refiner._mask_prompts(logits[None], inputs_hw)
        box = box_prompt(logits, inputs_hw, image_hw)
        text = [prompts[index]] if refiner.uses_text else None
        candidates = refiner._decode(embedding, mask, box, text)
        masks.append(refiner._to_image(candidates[:, 0], inputs_hw, image_hw)[0])
    return torch.stack(masks)


@torch.no_grad()
def box_prompt(logits: Tensor, input_hw: tuple[int, int], image_hw: tuple[int, int]) -> Tensor:
    """(1, 4) in SAM's pixels around one mask (h, w), found at the image's size."""
    (h, w), (input_h, input_w) = image_hw, input_hw
    probs = F.interpolate(logits.sigmoid()[None, None], image_hw, mode="bilinear")[0]
    box = tight_boxes(probs > 0.5).to(logits)
    if not box.any():
        box = box.new_tensor([[0.0, 0.0, w, h]])
    return box * box.new_tensor([input_w / w, input_h / h, input_w / w, input_h / h])


def choose_modules(refiner: SamRefiner, original: bool) -> None:
    """Let SAM compute as segment-anything wrote it, or as ours does; an official size's encoder
    is timm's either way."""
    for part in (refiner.image_encoder, refiner.mask_decoder):
        if not original:
            fuse(part)
            continue
        for module in part.modules():
            if type(module).__module__ == FusedUpscaling.__module__:
                module.__class__ = type(module).__bases__[0]


def ground(grounder: Grounder, sample: GrounderInputs) -> Grounding:
    """What the flow gives for one sample, with gradients for the head."""
    traced = trace(grounder.backbone, sample.backbone)
    maps = attention_maps(traced)
    (coarse,) = grounder.mask_head([maps])
    prompts: Sequence[Tensor] = ()
    if grounder.text_prompts is not None:
        (prompts,) = grounder.text_prompts([traced])
    refiner = grounder.refiner
    assert isinstance(refiner, SamRefiner)
    assert sample.picture is not None
    logits = refine(refiner, sample.picture, coarse, prompts, sample.image_hw)
    return Grounding(coarse_logits=coarse, logits=logits, maps=maps)
