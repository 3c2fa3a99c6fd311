"""Meta's own checkpoints of SAM 2, by the names that transformers' `Sam2Model` has."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from flmm_core.errors import WeightsError
from flmm_core.pipeline.refiners.sam_model import read_checkpoint

POSITIONS = "positional_embedding"
VIDEO = re.compile(
    r"memory_(attention|encoder)\.|mask_downsample\.|obj_ptr_(tpos_)?proj\.|maskmem_tpos_enc$"
    r"|no_mem_pos_enc$|no_obj_(ptr|embed_spatial)$"
)
"""Tensors of the video model."""

_HEADS = r"(iou_prediction_head|pred_obj_score_head|output_hypernetworks_mlps\.\d+)\.layers"
RENAMED: Mapping[str, str] = {
    r"^sam_(prompt_encoder|mask_decoder)\.": r"\1.",
    r"^image_encoder\.trunk\.": "vision_encoder.backbone.",
    r"^image_encoder\.neck\.convs\.(\d+)\.conv\.": r"vision_encoder.neck.convs.\1.",
    r"^no_mem_embed$": "no_memory_embedding",
    r"\.patch_embed\.proj\.": ".patch_embed.projection.",
    r"\.norm(\d|_)": r".layer_norm\1",
    r"\.out_proj\.": ".o_proj.",
    r"\.mlp\.layers\.0\.": ".mlp.proj_in.",
    r"\.mlp\.layers\.1\.": ".mlp.proj_out.",
    rf"\.{_HEADS}\.0\.": r".\1.proj_in.",
    rf"\.{_HEADS}\.1\.": r".\1.layers.0.",
    rf"\.{_HEADS}\.2\.": r".\1.proj_out.",
    r"\.output_upscaling\.0\.": ".upscale_conv1.",
    r"\.output_upscaling\.1\.": ".upscale_layer_norm.",
    r"\.output_upscaling\.3\.": ".upscale_conv2.",
    r"\.mask_downscaling\.0\.": ".mask_embed.conv1.",
    r"\.mask_downscaling\.1\.": ".mask_embed.layer_norm1.",
    r"\.mask_downscaling\.3\.": ".mask_embed.conv2.",
    r"\.mask_downscaling\.4\.": ".mask_embed.layer_norm2.",
    r"\.mask_downscaling\.6\.": ".mask_embed.conv3.",
    r"\.pe_layer\.positional_encoding_gaussian_matrix$": f".shared_embedding.{POSITIONS}",
}
"""Parts of Meta's names, and transformers' in their place, one after the other."""


def read_meta(path: Path, failed: Callable[[str], WeightsError]) -> dict[str, Tensor]:
    """The weights of a `Sam2Model` in Meta's file; their values stay on the disk until read.

    Raises:
        WeightsError: The file is truncated or another model's; `failed` makes it.
    """
    known = "image_encoder.trunk.pos_embed"
    content = read_checkpoint(path, known, failed, mapped=True)
    if not (
        isinstance(content, Mapping)
        and content
        and all(isinstance(value, Tensor) for value in content.values())
        and known in content
        and content[known].ndim == 4
    ):
        raise failed("The file does not hold one of Meta's SAM 2 models.")
    state = {_renamed(key): value for key, value in content.items() if not VIDEO.match(key)}
    points = "prompt_encoder.point_embeddings"
    rows = [state.pop(f"{points}.{label}.weight", None) for label in range(4)]
    if all(row is not None and row.ndim == 2 for row in rows):
        state["prompt_encoder.point_embed.weight"] = torch.cat(rows)
    shared = f"prompt_encoder.shared_embedding.{POSITIONS}"
    if shared in state:
        state[f"shared_image_embedding.{POSITIONS}"] = state[shared]
    return state


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name
