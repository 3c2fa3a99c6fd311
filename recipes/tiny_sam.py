"""Train the tiny SAM or SAM 2: the real classes at toy width, as a promptable segmenter.

    OMP_NUM_THREADS=1 nohup python -m recipes.tiny_sam sam --output DIR &
    python -m recipes.tiny_sam sam --output DIR --export flmm_core/assets/tiny_sam
    python -m recipes.tiny_sam sam2 --output DIR --export flmm_core/assets/tiny_sam2

Its prompts resemble the output of a mask head: blurred masks on a coarse grid, shifted, with holes
and with parts of a neighbor, and the box around them. It sees neither words nor attention maps.
The same command resumes a stopped run from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
)

from flmm_core.data.drawn.scenes import HARD_KINDS, make_scene, paint
from flmm_core.pipeline.refiners.encoding import SquareEncoder
from flmm_core.pipeline.refiners.prompted import PromptedRefiner
from flmm_core.pipeline.refiners.sam import SamEncoder, SamRefiner
from flmm_core.pipeline.refiners.sam2 import Sam2Encoder, Sam2Refiner
from flmm_core.pipeline.refiners.sam2_model import save_sam2, untrained_sam2
from flmm_core.pipeline.refiners.sam_model import SamShape, build_untrained_sam, save_sam
from flmm_core.training.losses import dice_loss, mask_cross_entropy

SHAPE = SamShape(
    image_size=128, patch_size=8, embed_dim=96, depth=4, num_heads=4, window_size=0,
    out_chans=64, decoder_depth=2, decoder_heads=4, decoder_mlp=128, iou_head_hidden=64,
)  # fmt: skip
IMAGES, RATE = 16, 1e-3


def rough_logits(masks: Tensor, rng: np.random.Generator) -> Tensor:
    """What a mask head might predict for each of the exact masks of an image.

    Args:
        masks: (P, H, W) float in {0, 1}.
        rng: Source of randomness.

    Returns:
        (P, h, w) logits, the longest side 64.
    """
    height, width = masks.shape[-2:]
    scale = 64 / max(height, width)
    size = (max(8, round(height * scale)), max(8, round(width * scale)))
    rows = []
    for index, mask in enumerate(masks):
        cells = int(rng.integers(7, 17))
        grid = [max(3, round(cells * side / max(height, width))) for side in (height, width)]
        shown = mask.clone()
        if len(masks) > 1 and rng.random() < 0.45:
            other = int(rng.choice([i for i in range(len(masks)) if i != index]))
            shown = torch.maximum(shown, masks[other] * float(rng.uniform(0.15, 0.75)))
        shift = rng.integers(-4, 5, size=2) * (rng.random() < 0.5)
        shown = torch.roll(shown, tuple(int(s) for s in shift), (0, 1))
        coarse = F.interpolate(shown[None, None], grid, mode="area")
        coarse = coarse * torch.from_numpy(rng.uniform(0.55, 1.3, (1, 1, *grid))).float()
        coarse = coarse + torch.from_numpy(rng.normal(0, 0.06, (1, 1, *grid))).float()
        fine = F.interpolate(coarse, size, mode="bilinear", align_corners=False)[0, 0]
        fine = fine / fine.amax().clamp(min=0.2)
        rows.append(float(rng.uniform(4, 16)) * (fine - float(rng.uniform(0.3, 0.6))))
    return torch.stack(rows)


def batch(step: int, seed: int, encoder: SquareEncoder) -> tuple[list[Tensor], ...]:
    """(images, rough logits, truths) of a step; depends on the seed and the step alone."""
    images, rough, truths = [], [], []
    for index in range(IMAGES):
        rng = np.random.default_rng((seed, step, index))
        kind = ("plain", *HARD_KINDS)[int(rng.choice(6, p=(0.5, 0.1, 0.1, 0.12, 0.1, 0.08)))]
        radius = (0.06, 0.28) if rng.random() < 0.3 else None
        scene = make_scene((seed, step, index), kind, count=(1, 4), radius=radius)
        image, masks, _ = paint(scene)
        masks = masks[masks.sum((1, 2)) > 12]
        if not len(masks):
            continue
        truth = torch.from_numpy(masks).float()
        images.append(encoder.prepare(Image.fromarray(image)))
        rough.append(rough_logits(truth, rng))
        truths.append(truth)
    return images, rough, truths


@dataclass(frozen=True)
class Segmenter:
    """A segmenter to train: its encoder, and its decoder with one candidate and with three.

    `save` writes the finished one, after `steps`, to a folder.
    """

    steps: int

    encoder: SquareEncoder
    one: PromptedRefiner
    three: PromptedRefiner
    save: Callable[[Path], None]

    @property
    def model(self) -> nn.ModuleDict:
        """All its weights, trainable."""
        parts = {"encoder": self.encoder.module, "decoder": self.one}
        return nn.ModuleDict(parts).requires_grad_(True)


def tiny_sam() -> Segmenter:
    """segment-anything's classes with random weights."""
    parts = build_untrained_sam(SHAPE)
    return Segmenter(
        1500,
        SamEncoder(parts),
        SamRefiner(parts, text=False),
        SamRefiner(parts, text=False, multimask=True),  # the same modules
        lambda folder: save_sam(folder, parts, torch.float16),
    )


def tiny_sam2() -> Segmenter:
    """transformers' SAM 2 with random weights."""
    parts = untrained_sam2(sam2_config())
    return Segmenter(
        900,
        Sam2Encoder(parts),
        Sam2Refiner(parts, text=False),
        Sam2Refiner(parts, text=False, multimask=True),  # the same modules
        lambda folder: save_sam2(folder, parts, torch.float16),
    )


def sam2_config() -> Sam2Config:
    """Half of SAM 2's strides, so that masks have a cell every two pixels, as SAM's here."""
    hiera = Sam2HieraDetConfig(
        hidden_size=24, num_attention_heads=1, image_size=[128, 128],
        patch_kernel_size=[3, 3], patch_stride=[2, 2], patch_padding=[1, 1],
        blocks_per_stage=[1, 1, 3, 1], embed_dim_per_stage=[24, 48, 96, 128],
        num_attention_heads_per_stage=[1, 2, 4, 4], window_size_per_stage=[8, 4, 8, 4],
        window_positional_embedding_background_size=[8, 8], global_attention_blocks=[3],
    )  # fmt: skip
    vision = Sam2VisionConfig(
        backbone_config=hiera, backbone_channel_list=[128, 96, 48, 24], fpn_hidden_size=64,
        backbone_feature_sizes=[[64, 64], [32, 32], [16, 16]],
    )  # fmt: skip
    prompts = Sam2PromptEncoderConfig(hidden_size=64, image_size=128, patch_size=8)
    decoder = Sam2MaskDecoderConfig(
        hidden_size=64, mlp_dim=128, num_attention_heads=4, iou_head_hidden_dim=64
    )
    return Sam2Config(
        vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder
    )


SEGMENTERS = {"sam": tiny_sam, "sam2": tiny_sam2}


def train(name: str, output: Path, seed: int = 0, every: int = 50) -> Segmenter:
    """Train, or resume training."""
    output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    segmenter = SEGMENTERS[name]()
    encoder, model, steps = segmenter.encoder, segmenter.model, segmenter.steps
    weights = [*model.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=0.01)
    saved, first, started = output / "state.pt", 0, time.time()
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    for step in range(first, steps):
        warm = min(1.0, (step + 1) / 60)
        optimizer.param_groups[0]["lr"] = (
            RATE * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        )
        images, rough, truths = batch(step, seed + 500, encoder)
        # every fourth step trains the three candidates, through the one that is chosen
        refiner = segmenter.three if step % 4 == 3 else segmenter.one
        sizes = [(truth.shape[1], truth.shape[2]) for truth in truths]
        refined = refiner(encoder.embed(images), rough, (), sizes)
        logits = [masks.full() for masks in refined]
        pairs = list(zip(logits, truths, strict=True))
        dice = torch.cat([dice_loss(guess, truth) for guess, truth in pairs]).mean()
        loss = dice + 3 * torch.cat([mask_cross_entropy(g, t) for g, t in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        if (step + 1) % every == 0:
            both = [((g > 0) & (t > 0), (g > 0) | (t > 0)) for g, t in pairs]
            iou = torch.cat([i.sum((1, 2)) / u.sum((1, 2)).clamp(min=1) for i, u in both]).mean()
            row = {"step": step + 1, "loss": round(loss.item(), 4), "iou": round(iou.item(), 4)}
            row["seconds"] = round(time.time() - started)
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(row) + "\n")
        if (step + 1) % (4 * every) == 0 or step + 1 == steps:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "optimizer": optimizer.state_dict(),
            }
            torch.save(state, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    return segmenter


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the tiny SAM or SAM 2 on drawn shapes.")
    parser.add_argument("name", choices=SEGMENTERS, help="which of the two")
    parser.add_argument("--output", type=Path, required=True, help="checkpoint and log")
    parser.add_argument("--export", type=Path, help="write the finished one here")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    trained = train(arguments.name, arguments.output, arguments.seed)
    if arguments.export:
        trained.save(arguments.export)
