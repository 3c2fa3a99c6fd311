"""One training step: VLM, mask head, SAM's decoder, loss, gradients, optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flmm_core.pipeline.observer import ObserverInputs
from flmm_core.pipeline.refiners.sam import SamEncoder, SamRefiner
from flmm_core.pipeline.types import Grounding
from flmm_core.training.losses import grounding_loss
from performance import original_way
from performance.alternate import ORIGINAL, OURS, Case, Comparison, Workload, compare_all
from performance.models import build_halves, caption, caption_for, discs, image_for, noise
from performance.tables import mib, ratio, seconds, table

COLUMNS = (
    "| model | S | images × phrases | ours, s | original-way, s | original-way / ours "
    "| ours, MiB | original-way, MiB |"
)


class Training(Workload):
    """A batch of images with their phrases.

    `ours` runs the batch through the flow at once. `original-way` runs one image after the other
    through `original_way` and adds up the gradients, so that both take the same step.
    """

    def __init__(self, case: Case) -> None:
        self.case = case
        self.observer, self.head = build_halves(case)
        images = [image_for(case, seed) for seed in range(case.images)]
        words = caption_for(self.observer.backbone, images[0], case)
        self.samples = [self.observer.prepare(image, words) for image in images]
        self.truths = [
            discs(case.phrases, image.height, image.width, seed)
            for seed, image in enumerate(images)
        ]
        trained = [value for value in self.head.parameters() if value.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4)
        self.head.train()
        self._warm: set[str] = set()

    def prepare(self, way: str) -> None:
        """The first time, also run a small image, which loads kernels."""
        encoder, refiner = self.observer.encoder, self.head.refiner
        assert isinstance(encoder, SamEncoder)
        assert isinstance(refiner, SamRefiner)
        original_way.choose_modules(encoder, refiner, way == ORIGINAL)
        original_way.choose_attention(self.observer.backbone, way == ORIGINAL)
        if way not in self._warm:
            self._warm.add(way)
            small = self.observer.prepare(noise(64, 64), caption(2))
            self._loss(way, [small], [discs(2, 64, 64)])

    def run(self, way: str) -> float:
        """One step; returns the loss."""
        self.optimizer.zero_grad()
        if way == OURS:
            loss = self._loss(way, self.samples, self.truths)
        else:
            pairs = zip(self.samples, self.truths, strict=True)
            loss = sum(self._loss(way, [sample], [truth]) for sample, truth in pairs)
        self.optimizer.step()
        return loss

    def _loss(self, way: str, samples: list[ObserverInputs], truths: list[Tensor]) -> float:
        """Adds gradients; the share of these samples in the loss of the whole batch."""
        groundings: tuple[Grounding, ...]
        if way == OURS:
            groundings = self.head(self.observer.observe(self.observer.collate(samples)))
        else:
            groundings = (original_way.ground(self.observer, self.head, samples[0]),)
        loss = grounding_loss(groundings, truths).total * len(samples) / len(self.samples)
        loss.backward()
        return loss.item()

    def facts(self, result: float) -> dict[str, Any]:
        """Length of a sequence, and the loss."""
        return {"tokens": len(self.samples[0].backbone), "loss": result}


def cases(size: str) -> list[Case]:
    """The case of a size."""
    work = "performance.training:Training", (OURS, ORIGINAL)
    batch = {"phrases": 4, "images": 8}
    if size == "real":
        gpu = {"sam": "vit_l", "dtype": "bfloat16", "device": "cuda"}
        return [Case(*work, "qwen2.5-vl-3b", 1380, **gpu, **batch)]
    model = ("qwen", 0) if size == "tiny" else ("medium", 1500)
    return [Case(*work, *model, **batch)]


def measure(size: str, repeats: int, until: float) -> tuple[list[Comparison], str]:
    """The figures, and their table."""
    rows = compare_all(cases(size), repeats, until)
    lines = [
        (
            f"{row.case.model} {row.case.dtype}",
            row.facts.get("tokens", "–"),
            f"{row.case.images} × {row.case.phrases}",
            seconds(row.median(OURS)),
            seconds(row.median(ORIGINAL)),
            ratio(row.ratio(ORIGINAL, OURS)),
            mib(row.peak(OURS)),
            mib(row.peak(ORIGINAL)),
        )
        for row in rows
    ]
    return rows, table(COLUMNS, lines)
