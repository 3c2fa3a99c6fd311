"""Checkpoints as the original F-LMM writes them, and what it computes from one, in plain torch.

`Original` is written from a description of the original and from nothing of flmm: the tensors of a
checkpoint by their names, transformers' own attention, segment-anything's own classes.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from flmm_core.pipeline.refiners.sam_model import TINY_FOLDER, save_sam
from tests import models
from tests.heads import arrays, reference_sam, tensors

LAYERS, HEADS, HIDDEN, SIDE = 3, 8, 64, 384
ENCODER = "sam.model.image_encoder."
POSITIONS = "sam.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"


def e2e_checkpoint() -> dict[str, Tensor]:
    """The end-to-end fixture's head with the whole SAM, as one flat checkpoint."""
    numbers = arrays("e2e_landscape")
    return {
        **{f"mask_head.{name}": value for name, value in tensors("unet_small_state").items()},
        **{f"sam.{name}": value for name, value in tensors("sam_tiny_state").items()},
        "text_layer_weights": numbers["text_layer_weights"],
        "text_proj.weight": numbers["text_proj_weight"],
        "text_proj.bias": numbers["text_proj_bias"],
    }


def nested(state: dict[str, Tensor]) -> dict[str, Any]:
    """As MMEngine's runner saves it."""
    meta = {"epoch": 8, "iter": 190000, "cfg": "model = dict()", "seed": 1}
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}
    return {"meta": meta, "state_dict": OrderedDict(state), "optimizer": optimizer}


def without_frozen(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in state.items() if not name.startswith(ENCODER)}


def deepseek(layers: int = LAYERS, heads: int = HEADS, hidden: int = HIDDEN) -> tuple[Any, Any]:
    """(config, processor): DeepSeek-VL's real grid of 24 x 24 in 384 pixels, at toy width."""
    chat = models.template("<image_placeholder>")
    words = models.tokenizer(chat, image_token="<image_placeholder>")
    processor = transformers.DeepseekVLProcessor(
        transformers.DeepseekVLImageProcessor(size={"height": SIDE, "width": SIDE}),
        words,
        chat_template=chat,
        num_image_tokens=576,
    )
    text = {
        "hidden_size": hidden,
        "intermediate_size": 96,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "max_position_embeddings": 1024,
    }
    config = transformers.DeepseekVLConfig(
        text_config={"model_type": "llama", **models.text_config(words, **text)},
        vision_config=models.VISION
        | {
            "model_type": "siglip_vision_model",
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "image_size": SIDE,
            "patch_size": 16,
            "vision_use_head": False,
        },
        image_token_id=words.convert_tokens_to_ids("<image_placeholder>"),
    )
    return config, processor


class Folders(NamedTuple):
    """What an import is given: a model and a SAM that the end-to-end fixture's head fits."""

    settings: Path  # of the model, without its weights
    model: Path
    sam: Path


def write_folders(folder: Path) -> Folders:
    config, processor = deepseek()
    torch.manual_seed(0)
    vlm = transformers.DeepseekVLForConditionalGeneration(config)
    with torch.no_grad():  # attention far from uniform
        for name, value in vlm.named_parameters():
            if value.ndim == 2:
                value.mul_(6 if "q_proj" in name or "k_proj" in name else 3)
    for part in (config, processor):
        part.save_pretrained(folder / "settings")
    for part in (vlm, processor):
        part.save_pretrained(folder / "model")
    save_sam(folder / "sam", reference_sam())
    return Folders(folder / "settings", folder / "model", folder / "sam")


def resized(side: int, longest: int) -> int:
    """A side of the image in the square that the VLM sees, in pixels; fractions are cut off."""
    return int(side / longest * SIDE)


class Original:
    """The original's head, one mask after the other."""

    def __init__(self, state: dict[str, Tensor], pool: str) -> None:
        self.state, self.pool = state, pool

    def coarse(self, attention: Tensor, phrases: Sequence[Tensor], hw: tuple[int, int]) -> Tensor:
        """(P, h, w) logits; `attention` is (L, N, S, 576), `phrases` are rows of it."""
        masks = []
        for rows in phrases:
            own = attention[:, :, rows]
            pooled = own.mean(2) if self.pool == "mean" else own.amax(2)  # (L, N, 576)
            maps = pooled.reshape(1, -1, 24, 24)  # layer-major, head-minor
            maps = maps / maps.sum((2, 3), keepdim=True).clamp(min=1e-12)
            maps = F.interpolate(maps, scale_factor=64 / 24, mode="bilinear")
            masks.append(self._unet(maps)[0, 0])
        (y, h), (x, w) = ((self._crop(side, max(hw))) for side in hw)
        return torch.stack(masks)[:, y : y + h, x : x + w]

    @staticmethod
    def _crop(side: int, longest: int) -> tuple[int, int]:
        """(first cell, cells) of the image along an axis of 64 cells."""
        pixels = resized(side, longest)
        return int((SIDE - pixels) // 2 * 64 / SIDE), int(pixels * 64 / SIDE + 0.5)

    def _conv(self, x: Tensor, name: str) -> Tensor:
        weight = self.state[f"mask_head.{name}.conv.weight"]
        x = F.conv2d(x, weight, padding=weight.shape[-1] // 2)
        norm = [self.state[f"mask_head.{name}.gn.{part}"] for part in ("weight", "bias")]
        return F.relu(F.group_norm(x, 1, *norm, eps=1e-5))

    def _unet(self, x: Tensor) -> Tensor:
        skips = []
        for stage in range(4):
            block = f"encoder.{stage}.{int(stage > 0)}.convs"
            x = F.max_pool2d(x, 2) if stage else x
            x = self._conv(self._conv(x, f"{block}.0"), f"{block}.1")
            skips.append(x)
        for stage in (2, 1, 0):
            x = F.interpolate(x, scale_factor=2, mode="bilinear")
            x = self._conv(x, f"decoder.{stage}.upsample.interp_upsample.1")
            x = torch.cat([skips[stage], x], dim=1)
            for number in (0, 1):
                x = self._conv(x, f"decoder.{stage}.conv_block.convs.{number}")
        weight, bias = (self.state[f"mask_head.conv_seg.{part}"] for part in ("weight", "bias"))
        return F.conv2d(x, weight, bias)

    def refined(
        self,
        pixels: Tensor,
        coarse: Tensor,
        hidden: Tensor,
        phrases: Sequence[Tensor],
        hw: tuple[int, int],
    ) -> Tensor:
        """(P, H, W) logits; `pixels` (3, h, w) as SAM sees the image, `hidden` (L, S, D)."""
        sam = reference_sam()
        for name in ("prompt_encoder", "mask_decoder"):
            prefix = f"sam.model.{name}."
            own = {k.removeprefix(prefix): v for k, v in self.state.items() if k.startswith(prefix)}
            getattr(sam, name).load_state_dict(own)
        mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
        std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
        h, w = pixels.shape[1:]
        square = F.pad((pixels - mean) / std, (0, 1024 - w, 0, 1024 - h))
        image = sam.image_encoder(square[None])
        prompts = F.interpolate(coarse[:, None], (h, w), mode="bilinear")
        low = min(-1.0, coarse.min().item())
        prompts = F.pad(prompts, (0, 1024 - w, 0, 1024 - h), value=low)
        prompts = F.interpolate(prompts, (256, 256), mode="bilinear")
        weights = self.state["text_layer_weights"].softmax(0)
        text = (weights[:, None, None] * hidden).sum(0)  # (S, D)
        text = text @ self.state["text_proj.weight"].T + self.state["text_proj.bias"]
        masks = []
        for number, rows in enumerate(phrases):
            whole = F.interpolate(coarse[None, None, number].sigmoid(), hw, mode="bilinear")[0, 0]
            ys, xs = (whole > 0.5).nonzero(as_tuple=True)
            box = [0, 0, hw[1], hw[0]]
            if len(ys):
                box = [int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1]
            scaled = torch.tensor([box]) * torch.tensor([w / hw[1], h / hw[0]] * 2)
            sparse, dense = sam.prompt_encoder(None, scaled, prompts[number, None])
            sparse = torch.cat([sparse, text[None, rows]], dim=1)
            position = sam.prompt_encoder.get_dense_pe()
            small, _ = sam.mask_decoder(image, position, sparse, dense, multimask_output=False)
            large = F.interpolate(small, (1024, 1024), mode="bilinear")[:, :, :h, :w]
            masks.append(F.interpolate(large, hw, mode="bilinear")[0, 0])
        return torch.stack(masks)


def toy_checkpoint(layers: int, channels: int, hidden: int) -> dict[str, Tensor]:
    """A small head with the packaged SAM, for a model of these sizes."""
    torch.manual_seed(0)
    state = {name: x for name, x in e2e_checkpoint().items() if not name.startswith("sam.")}
    sam = load_file(TINY_FOLDER / "model.safetensors")
    width = sam["prompt_encoder.no_mask_embed.weight"][0]
    return state | {
        "mask_head.encoder.0.0.convs.0.conv.weight": torch.randn(16, channels, 3, 3),
        "text_layer_weights": torch.randn(layers),
        "text_proj.weight": torch.randn(len(width), hidden) / hidden,
        "text_proj.bias": torch.zeros(len(width)),
        **{f"sam.model.{name}": x.half() for name, x in sam.items()},
    }
