"""The reference numbers, and small heads and SAMs with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from flmm_core.pipeline.mask_head import MaskHead
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
