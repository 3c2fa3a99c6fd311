"""The reference numbers, and small heads and SAMs with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.refiners.sam2_model import Sam2Parts
from flmm_core.pipeline.refiners.sam_model import SamParts, SamShape, build_untrained_sam

REFERENCE = Path(__file__).parent / "fixtures" / "reference"

REFERENCE_SAM = SamShape(
    image_size=1024,
    patch_size=16,
    embed_dim=48,
    depth=2,
    num_heads=4,
    window_size=4,
    out_chans=32,
    decoder_depth=2,
    decoder_heads=4,
    decoder_mlp=64,
    iou_head_hidden=32,
    global_blocks=(1,),
    relative_positions=True,
)

SMALL_SAM = SamShape(
    image_size=64,
    patch_size=8,
    embed_dim=32,
    depth=2,
    num_heads=2,
    window_size=3,
    out_chans=16,
    decoder_depth=2,
    decoder_heads=2,
    decoder_mlp=32,
    iou_head_hidden=16,
    global_blocks=(1,),
    relative_positions=True,
)


def arrays(name: str) -> dict[str, Tensor]:
    """All arrays of a reference .npz that torch can hold."""
    with np.load(REFERENCE / f"{name}.npz", allow_pickle=False) as file:
        found = {key: file[key] for key in file.files}
    return {key: torch.from_numpy(value) for key, value in found.items() if value.dtype.kind != "U"}


def require_originals_refined(logits: Tensor) -> None:
    """That refined logits (P, 333, 500) are those of the end-to-end fixture.

    A random SAM makes 1e-3 of a difference of 1e-6: the same code is 1e-5 to 3e-5 away in the mean,
    and up to 1e-3, with other threads, processors and versions of torch. What rounds otherwise than
    the original is 1.6e-2 away, and 0.9.
    """
    apart = (logits[:, ::4, ::4] - arrays("e2e_landscape")["out_sam_pred_masks"]).abs()
    assert apart.mean() <= 1e-4
    assert apart.max() <= 5e-3


def tensors(name: str) -> dict[str, Tensor]:
    return load_file(REFERENCE / f"{name}.safetensors")


def reference_mask_head(**options: Any) -> MaskHead:
    head = MaskHead(24, 16, **options)
    head.unet.load_state_dict(tensors("unet_small_state"))
    return head


def reference_sam() -> SamParts:
    parts = build_untrained_sam(REFERENCE_SAM)
    state = tensors("sam_tiny_state")
    for part in ("image_encoder", "prompt_encoder", "mask_decoder"):
        prefix = f"model.{part}."
        own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        getattr(parts, part).load_state_dict(own)
    return parts


def small_sam2_config(width: int = 16) -> Any:
    """transformers' `Sam2Config` of a small SAM 2, whose images have 64 pixels per side."""
    from transformers import (
        Sam2Config,
        Sam2HieraDetConfig,
        Sam2MaskDecoderConfig,
        Sam2PromptEncoderConfig,
        Sam2VisionConfig,
    )

    hiera = Sam2HieraDetConfig(
        hidden_size=4, blocks_per_stage=[1, 1, 2, 1], embed_dim_per_stage=[4, 8, 16, 32],
        global_attention_blocks=[3], image_size=[64, 64],
    )  # fmt: skip
    return Sam2Config(
        vision_config=Sam2VisionConfig(
            backbone_config=hiera, backbone_channel_list=[32, 16, 8, 4], fpn_hidden_size=width,
            backbone_feature_sizes=[[16, 16], [8, 8], [4, 4]],
        ),
        prompt_encoder_config=Sam2PromptEncoderConfig(hidden_size=width, image_size=64),
        mask_decoder_config=Sam2MaskDecoderConfig(
            hidden_size=width, mlp_dim=32, num_attention_heads=2, iou_head_hidden_dim=16
        ),
    )  # fmt: skip


def small_sam2_model(seed: int = 0) -> Any:
    """transformers' own `Sam2Model`, with random weights as of `small_sam`."""
    from transformers import Sam2Model

    torch.manual_seed(seed)
    model = Sam2Model(small_sam2_config())
    with torch.no_grad():
        for value in model.parameters():
            if value.ndim > 1:
                value.normal_(std=0.3)
    return model.eval()


def small_sam2(seed: int = 0) -> Sam2Parts:
    """The parts of `small_sam2_model`."""
    return Sam2Parts.of("tiny", small_sam2_model(seed))


def small_sam(shape: SamShape = SMALL_SAM, seed: int = 0) -> SamParts:
    """Random weights, large enough that prompts and positions matter."""
    torch.manual_seed(seed)
    parts = build_untrained_sam(shape)
    with torch.no_grad():
        for module in (parts.image_encoder, parts.prompt_encoder, parts.mask_decoder):
            for value in module.parameters():
                if value.ndim > 1:
                    value.normal_(std=0.3)
    return parts
