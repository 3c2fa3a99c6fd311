"""The flow as F-LMM runs it, written anew from what it computes: what the ratios compare with.

Eager attention, every layer's attention and hidden states kept, one sample at a time, one mask at
a time. Where there is a choice it favors the original: no language-model head, no KV cache, rows
are chosen before columns, so that no (S, M) slice is copied, and an image is encoded once for all
its masks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.batch import place_rows, to_vlm
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.mask_logits import Canvas, MaskLogits
from flmm_core.pipeline.observer import Observer, ObserverInputs
from flmm_core.pipeline.refiners.sam import SamEncoder, SamRefiner
from flmm_core.pipeline.refiners.sam_attention import CellwiseMaskDecoder, fuse
from flmm_core.pipeline.types import BackboneInputs, EncodedImage, Features, Grounding, Trace


@torch.no_grad()
def trace(backbone: Backbone, sample: BackboneInputs) -> Trace:
    """What `Backbone.trace` gives for one sample. The VLM must run eager attention."""
    batch = backbone.collate([sample])
    placed = place_rows(batch)
    rows, columns, groups = placed.rows[0], placed.columns[0], placed.groups[0]
    output = backbone.vlm.model(
        **to_vlm(backbone.vlm, batch.tensors),
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
    image: EncodedImage,
    coarse: Tensor,
    prompts: Sequence[Tensor],
    image_hw: tuple[int, int],
) -> MaskLogits:
    """Masks, one decoded after the other."""
    masks = []
    for index, logits in enumerate(coarse):
        mask = refiner._mask_prompts(logits[None], image.input_hw)
        box = refiner._box_prompts(logits[None], image.input_hw, image_hw)
        text = [prompts[index]] if refiner.uses_text else None
        candidates = refiner._decode(image.embedding[None], mask, box, text)
        masks.append(candidates[:, 0])
    canvas = Canvas(refiner.image_size, image.input_hw)
    return MaskLogits(torch.cat(masks), image_hw, canvas)


def ground(observer: Observer, head: Head, sample: ObserverInputs) -> Grounding:
    """What the flow gives for one sample, with gradients for the head."""
    encoder, refiner = observer.encoder, head.refiner
    assert encoder is not None
    assert sample.image is not None
    assert head.text_prompts is not None
    assert isinstance(refiner, SamRefiner)
    traced = trace(observer.backbone, sample.backbone)
    (image,) = encoder.encode([sample.image])
    maps, hw = attention_maps(traced), sample.backbone.image_hw
    (coarse,) = head.mask_head([maps])
    (prompts,) = head.text_prompts([Features(maps, traced.hidden, traced.row_phrase, image, hw)])
    return Grounding(coarse, refine(refiner, image, coarse, prompts, hw), maps)


def choose_attention(backbone: Backbone, original: bool) -> None:
    """Let the VLM run eager attention, or sdpa."""
    wanted = "eager" if original else "sdpa"
    if backbone.vlm.config._attn_implementation != wanted:
        backbone.vlm.set_attn_implementation(wanted)


def choose_modules(encoder: SamEncoder, refiner: SamRefiner, original: bool) -> None:
    """Let SAM compute as segment-anything wrote it, or as ours does."""
    for part in (encoder.module, refiner.mask_decoder):
        if not original:
            fuse(part)
            continue
        for module in part.modules():
            if type(module).__module__ == CellwiseMaskDecoder.__module__:
                module.__class__ = type(module).__bases__[0]
