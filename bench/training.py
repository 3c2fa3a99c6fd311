"""One step of training: VLM, mask head, SAM's decoder, loss, gradients, optimizer."""

from __future__ import annotations

from typing import Any

import torch

from bench import original_way
from bench.cases import ORIGINAL, OURS, CaseSpec
from bench.inputs import (
    CELL,
    caption,
    discs,
    filled_caption,
    grid_for,
    medium_backbone,
    picture,
    tiny_backbone,
)
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.refiners.sam import SamRefiner
from flmm_core.pipeline.refiners.sam_model import build_sam
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.training.losses import grounding_loss

WAYS = (OURS, ORIGINAL)


class TrainingCase:
    """A batch of images with their phrases.

    `ours` puts the batch through the flow at once. `original-way` puts one image after the other
    through `bench.original_way` and adds up the gradients, so that both take the same step.
    """

    def __init__(self, spec: CaseSpec) -> None:
        self.spec = spec
        self.grounder = build_grounder(spec)
        h, w = grid_for(spec.tokens) if spec.tokens else (8, 10)
        images = [picture(w * CELL, h * CELL, seed) for seed in range(spec.pictures)]
        backbone = self.grounder.backbone
        words = filled_caption(backbone, images[0], spec.phrases, spec.tokens)
        self.samples = [self.grounder.prepare(image, words) for image in images]
        self.truths = [
            discs(spec.phrases, h * CELL, w * CELL, seed) for seed in range(spec.pictures)
        ]
        weights = [value for value in self.grounder.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=1e-4)
        self.grounder.train()
        self._warm: set[str] = set()

    def prepare(self, way: str) -> None:
        """Switch the attention; the first time also run a small image, which loads kernels."""
        refiner = self.grounder.refiner
        assert isinstance(refiner, SamRefiner)
        original_way.choose_modules(refiner, way == ORIGINAL)
        how = "eager" if way == ORIGINAL else "sdpa"
        if self.grounder.backbone.vlm.config._attn_implementation != how:
            self.grounder.backbone.vlm.set_attn_implementation(how)
        if way not in self._warm:
            self._warm.add(way)
            small = self.grounder.prepare(picture(64, 64), caption(2))
            groundings = (
                self.grounder(self.grounder.collate([small]))
                if way == OURS
                else [original_way.ground(self.grounder, small)]
            )
            grounding_loss(groundings, [discs(2, 64, 64)]).total.backward()

    def run(self, way: str) -> dict[str, Any]:
        """One step."""
        self.optimizer.zero_grad()
        if way == OURS:
            batch = self.grounder.collate(self.samples)
            loss = grounding_loss(self.grounder(batch), self.truths).total
            loss.backward()
            total = loss.item()
        else:
            total = 0.0
            for sample, truth in zip(self.samples, self.truths, strict=True):
                grounding = original_way.ground(self.grounder, sample)
                loss = grounding_loss([grounding], [truth]).total / len(self.samples)
                loss.backward()
                total += loss.item()
        self.optimizer.step()
        return {
            "loss": total,
            "tokens": len(self.samples[0].backbone.tensors["input_ids"]),
            "pictures": len(self.samples),
            "phrases": len(self.samples) * self.spec.phrases,
        }


def build_grounder(spec: CaseSpec) -> Grounder:
    """The whole flow with the tiny SAM and a fresh head."""
    dtype = getattr(torch, spec.dtype)
    if spec.model == "medium":
        backbone = medium_backbone(spec.tokens, dtype, spec.device)
    else:
        backbone = tiny_backbone(spec.model, dtype, spec.device)
    torch.manual_seed(0)
    refiner = SamRefiner(build_sam("tiny"))
    grounder = Grounder(
        backbone,
        MaskHead(backbone.attention_channels),
        TextPrompts(backbone.num_layers, backbone.hidden_size, refiner.prompt_width),
        refiner,
    )
    return grounder.to(spec.device)


def specs(size: str) -> list[CaseSpec]:
    """The cases of a size: "tiny" or "medium"."""
    if size == "tiny":
        return [CaseSpec("training", "qwen", phrases=4, pictures=8)]
    return [CaseSpec("training", "medium", 1500, phrases=4, pictures=8)]
