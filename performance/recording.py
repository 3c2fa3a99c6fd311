"""What recording attention adds to the VLM's own forward: time and memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from flmm_core.pipeline.backbone.batch import to_vlm
from flmm_core.pipeline.types import Trace
from performance import original_way, roofline
from performance.alternate import BARE, ORIGINAL, OURS, Case, Comparison, Workload, compare_all
from performance.models import (
    AROUND,
    LLAVA,
    REAL,
    build_backbone,
    caption,
    caption_for,
    image_for,
    noise,
)
from performance.tables import mib, ratio, seconds, table

TIMES = "| model | S | bare, s | ours, s | original-way, s | ours / bare | original-way / ours |"
MEMORY = "| model | S | bare, MiB | result, MiB | ours, MiB | original-way, MiB |"
ROOFLINE = "| model | S | forward, TFLOP | least time, s | ours, s | least / ours |"
LONGEST = 4096
"""Image tokens that must fit."""


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
        self._least: dict[str, float] = {}

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
        self.backbone.vlm.model(**to_vlm(self.backbone.vlm, batch.tensors), use_cache=False)
        return None

    def facts(self, result: Trace | None) -> dict[str, Any]:
        """Length of the sequence, and size of the result; for `bare` the least time it can take."""
        facts: dict[str, Any] = {"tokens": len(self.sample)}
        if result is not None:
            facts["result_bytes"] = result.attention.nbytes + result.hidden.nbytes
        elif not self._least:
            model = self.backbone.vlm.model
            self._least = roofline.least_seconds(lambda: self._forward(BARE, self.sample), model)
        return facts | (self._least if result is None else {})


def cases(size: str) -> list[Case]:
    """The cases of a size."""
    work = "performance.recording:Recording", (BARE, OURS, ORIGINAL)
    if size == "tiny":
        return [Case(*work, name) for name in ("qwen", "deepseek_vl", "llava_next")]
    if size == "medium":
        kinds = [(tokens, dtype) for dtype in ("float32", "bfloat16") for tokens in LENGTHS]
        return [Case(*work, "medium", tokens, dtype=dtype) for tokens, dtype in kinds]
    gpu = {"dtype": "bfloat16", "device": "cuda"}
    lengths = 1280 + AROUND, LONGEST + AROUND
    sizes = [(name, tokens) for name in REAL if name != LLAVA for tokens in lengths]
    return [Case(*work, name, tokens, **gpu) for name, tokens in [*sizes, (LLAVA, 0)]]


LENGTHS = (700, 1500, 3000)


def tables(rows: Sequence[Comparison]) -> str:
    """Time, memory, and how near to the machine's limits."""
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
    limits = [
        (
            *name,
            ratio(row.runs[BARE].facts.get("operations", math.nan) / 1e12),
            seconds(_least(row)),
            seconds(row.median(OURS)),
            ratio(_least(row) / row.median(OURS)),
        )
        for name, row in zip(names, rows, strict=True)
    ]
    shown = table(TIMES, times), table(MEMORY, memory), table(ROOFLINE, limits)
    return "\n\n".join(shown)


def _least(row: Comparison) -> float:
    """Seconds; not a number where `bare` failed."""
    found: float = row.runs[BARE].facts.get("least_seconds", math.nan)
    return found


def aims(rows: Sequence[Comparison]) -> str:
    """The aims for published sizes on a GPU, each with the worst figure beside it."""
    counts = [(row, row.runs[OURS]) for row in rows]
    failed = [f"{row.case.model}: {ours.failed}" for row, ours in counts if ours.failed]
    lines = [
        _aim("ours / bare", 1.10, max, [row.ratio(OURS, BARE) for row in rows]),
        _aim("original-way / ours", 5.0, min, [row.ratio(ORIGINAL, OURS) for row in rows]),
        _aim("least / ours", 0.5, min, [_least(row) / row.median(OURS) for row in rows]),
        f"* ours at {LONGEST:,} image tokens: {'; '.join(failed) or 'not out of memory'}",
    ]
    return "\n".join(lines)


def _aim(name: str, aim: float, worst: Callable[..., float], values: list[float]) -> str:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return f"* {name}: not measured"
    found, wanted = worst(known), "at most" if worst is max else "at least"
    held = "held" if worst(found, aim) == aim else "missed"
    missing = f", {len(values) - len(known)} not measured" if len(known) < len(values) else ""
    return f"* {name}: {found:.2f} at worst; aim {wanted} {aim:.2f}, {held}{missing}"


def measure(size: str, repeats: int, until: float) -> tuple[list[Comparison], str]:
    """The figures, and their tables."""
    rows = compare_all(cases(size), repeats, until)
    return rows, f"{tables(rows)}\n\n{aims(rows)}" if size == "real" else tables(rows)
