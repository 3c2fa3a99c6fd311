"""What recording attention adds to the VLM's own forward: time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from flmm_core.pipeline.types import Trace
from performance import original_way
from performance.alternate import BARE, ORIGINAL, OURS, Case, Comparison, Workload, compare_all
from performance.models import LLAVA, REAL, build_backbone, caption, caption_for, image_for, noise
from performance.tables import mib, ratio, seconds, table

TIMES = "| model | S | bare, s | ours, s | original-way, s | ours / bare | original-way / ours |"
MEMORY = "| model | S | bare, MiB | result, MiB | ours, MiB | original-way, MiB |"


class Recording(Workload):
    """One image with its phrases through the VLM.

    `bare` is `vlm.model` under sdpa, with nothing recorded and without its language-model head;
    `ours` is `Backbone.trace`; `original-way` is `original_way.trace`.
    """

    def __init__(self, case: Case) -> None:
        self.backbone = build_backbone(case)
        image = image_for(case)
        self.sample = self.backbone.prepare(image, caption_for(self.backbone, image, case))
        self.short = self.backbone.prepare(noise(64, 64), caption(2))
        self._warm: set[str] = set()

    def prepare(self, way: str) -> None:
        """The first time, also run a short sequence, which loads kernels."""
        original_way.choose_attention(self.backbone, way == ORIGINAL)
        if way not in self._warm:
            self._warm.add(way)
            self._forward(way, self.short)

    def run(self, way: str) -> Trace | None:
        """One forward."""
        return self._forward(way, self.sample)

    @torch.no_grad()
    def _forward(self, way: str, sample: Any) -> Trace | None:
        if way == ORIGINAL:
            return original_way.trace(self.backbone, sample)
        batch = self.backbone.collate([sample])
        if way == OURS:
            return self.backbone.trace(batch)[0]
        self.backbone.vlm.model(**self.backbone._to_vlm(batch.tensors), use_cache=False)
        return None

    def facts(self, result: Trace | None) -> dict[str, int]:
        """Length of the sequence, and size of the result."""
        kept = () if result is None else (result.attention, result.hidden)
        return {"tokens": len(self.sample), "result_bytes": sum(value.nbytes for value in kept)}


def cases(size: str) -> list[Case]:
    """The cases of a size."""
    work = "performance.recording:Recording", (BARE, OURS, ORIGINAL)
    if size == "tiny":
        return [Case(*work, name) for name in ("qwen", "deepseek_vl", "llava_next")]
    if size == "medium":
        kinds = [(tokens, dtype) for dtype in ("float32", "bfloat16") for tokens in LENGTHS]
        return [Case(*work, "medium", tokens, dtype=dtype) for tokens, dtype in kinds]
    gpu = {"dtype": "bfloat16", "device": "cuda"}
    sizes = [(name, tokens) for name in REAL if name != LLAVA for tokens in (1380, 4196)]
    return [Case(*work, name, tokens, **gpu) for name, tokens in [*sizes, (LLAVA, 0)]]


LENGTHS = (700, 1500, 3000)


def tables(rows: Sequence[Comparison]) -> str:
    """Time, then memory."""
    names = [(f"{row.case.model} {row.case.dtype}", row.facts.get("tokens", "–")) for row in rows]
    times = [
        (
            *name,
            *(seconds(row.median(way)) for way in (BARE, OURS, ORIGINAL)),
            ratio(row.ratio(OURS, BARE)),
            ratio(row.ratio(ORIGINAL, OURS)),
        )
        for name, row in zip(names, rows, strict=True)
    ]
    memory = [
        (
            *name,
            mib(row.peak(BARE)),
            mib(row.runs[OURS].facts.get("result_bytes", 0)),
            *(mib(row.peak(way) - row.peak(BARE)) for way in (OURS, ORIGINAL)),
        )
        for name, row in zip(names, rows, strict=True)
    ]
    return f"{table(TIMES, times)}\n\n{table(MEMORY, memory)}"


def measure(size: str, repeats: int, until: float) -> tuple[list[Comparison], str]:
    """The figures, and their tables."""
    rows = compare_all(cases(size), repeats, until)
    return rows, tables(rows)
