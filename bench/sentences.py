"""Several sentences about one image against one: protocol `standard` asks each alone."""

from __future__ import annotations

from typing import Any

import torch

from bench.cases import CaseSpec
from bench.inputs import CELL, PHRASES, grid_for, picture
from bench.training import build_grounder
from flmm_core.pipeline.grounder import GrounderBatch
from flmm_core.segment import Segment

ONE, SEVERAL, APART = "one sentence", "several", "each with its prompt"
VLM_ONE, VLM_SEVERAL = "one sentence, VLM", "several, VLM"
WAYS = (ONE, SEVERAL, APART, VLM_ONE, VLM_SEVERAL)


class SentencesCase:
    """`spec.phrases` sentences of one phrase about one image.

    The first three ways run the whole flow without gradients, the last two the VLM alone
    (`Backbone.trace`). `each with its prompt` switches the sharing of prompts off.
    """

    def __init__(self, spec: CaseSpec) -> None:
        self.grounder = build_grounder(spec).eval()
        h, w = grid_for(spec.tokens) if spec.tokens else (8, 10)
        image = picture(w * CELL, h * CELL)
        captions = [[Segment(PHRASES[i], 0), Segment(".")] for i in range(spec.phrases)]
        first = self.grounder.prepare(image, captions[0])
        others = [self.grounder.prepare(image, words, like=first) for words in captions[1:]]
        self.samples = [first, *others]
        self.batches = {way: self._batch(way) for way in WAYS}
        self._short = self.grounder.collate([self.grounder.prepare(picture(64, 64), captions[0])])

    def _batch(self, way: str) -> GrounderBatch:
        backbone = self.grounder.backbone
        backbone.shares_prompts = way != APART
        return self.grounder.collate(self.samples[:1] if way in (ONE, VLM_ONE) else self.samples)

    @torch.no_grad()
    def prepare(self, way: str) -> None:
        """Load kernels with a small image."""
        self.grounder(self._short)

    @torch.no_grad()
    def run(self, way: str) -> dict[str, Any]:
        """One forward."""
        batch = self.batches[way]
        if way in (VLM_ONE, VLM_SEVERAL):
            self.grounder.backbone.trace(batch.backbone)
        else:
            self.grounder(batch)
        tokens = len(self.samples[0].backbone.tensors["input_ids"])
        return {"sentences": len(batch), "tokens": tokens}


def specs(size: str) -> list[CaseSpec]:
    """The cases of a size: "tiny" or "medium"."""
    if size == "tiny":
        return [CaseSpec("sentences", "qwen", phrases=3)]
    return [CaseSpec("sentences", "medium", 1500, phrases=3)]
