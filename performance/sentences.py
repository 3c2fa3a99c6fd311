"""Several sentences about one image, as protocol `standard` reads them: with a shared prompt."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from flmm_core.pipeline.observer import ObserverBatch
from flmm_core.segment import statements
from performance.alternate import Case, Comparison, Workload, compare_all
from performance.models import PHRASES, build_halves, image_for, noise
from performance.tables import ratio, seconds, table

ONE, SEVERAL, APART = "one sentence", "several", "several, no shared prompt"
VLM_ONE, VLM_SEVERAL = "one sentence, VLM only", "several, VLM only"
COLUMNS = (
    "| model | S | sentences | one, s | several, s | no shared prompt, s | several / one "
    "| the same, VLM only | no shared prompt / several |"
)


class Sentences(Workload):
    """`case.phrases` sentences of one phrase about one image, without gradients."""

    def __init__(self, case: Case) -> None:
        self.observer, self.head = build_halves(case)
        image, backbone = image_for(case), self.observer.backbone
        captions = [statements([words]) for words in PHRASES[: case.phrases]]
        first = self.observer.prepare(image, captions[0])
        others = [self.observer.prepare(image, words, like=first) for words in captions[1:]]
        one, several = self.observer.collate([first]), self.observer.collate([first, *others])
        unshared = backbone.collate([backbone.prepare(image, words) for words in captions])
        apart = replace(several, backbone=unshared)  # SAM still encodes the image once
        self.batches = {
            ONE: one, SEVERAL: several, APART: apart, VLM_ONE: one, VLM_SEVERAL: several
        }  # fmt: skip
        self.short = self.observer.collate([self.observer.prepare(noise(64, 64), captions[0])])

    def prepare(self, way: str) -> None:
        """Load kernels with a small image."""
        self._ground(self.short)

    @torch.no_grad()
    def run(self, way: str) -> ObserverBatch:
        """One forward."""
        batch = self.batches[way]
        if way in (VLM_ONE, VLM_SEVERAL):
            self.observer.backbone.trace(batch.backbone)
        else:
            self._ground(batch)
        return batch

    @torch.no_grad()
    def _ground(self, batch: ObserverBatch) -> None:
        self.head(self.observer.observe(batch))

    def facts(self, result: ObserverBatch) -> dict[str, Any]:
        """How many sentences, and the length of the first sequence."""
        return {"sentences": len(result), "tokens": len(result.backbone.samples[0])}


def cases(size: str) -> list[Case]:
    """The case of a size."""
    work = "performance.sentences:Sentences", (ONE, SEVERAL, APART, VLM_ONE, VLM_SEVERAL)
    if size == "real":
        gpu = {"sam": "vit_l", "dtype": "bfloat16", "device": "cuda"}
        return [Case(*work, "qwen2.5-vl-3b", 1380, phrases=3, **gpu)]
    model = ("qwen", 0) if size == "tiny" else ("medium", 1500)
    return [Case(*work, *model, phrases=3)]


def measure(size: str, repeats: int, until: float) -> tuple[list[Comparison], str]:
    """The figures, and their table."""
    rows = compare_all(cases(size), repeats, until)
    lines = [
        (
            f"{row.case.model} {row.case.dtype}",
            row.facts.get("tokens", "–"),
            row.case.phrases,
            *(seconds(row.median(way)) for way in (ONE, SEVERAL, APART)),
            ratio(row.ratio(SEVERAL, ONE)),
            ratio(row.ratio(VLM_SEVERAL, VLM_ONE)),
            ratio(row.ratio(APART, SEVERAL)),
        )
        for row in rows
    ]
    return rows, table(COLUMNS, lines)
