"""What learned pooling adds: to recording, to a training step of the mask head, and in bytes.

All ways take turns in this process; seconds are those of its CPU, so other programs do not count.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch

from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.pooling import LearnedPooling
from flmm_core.pipeline.refiners.none import NoRefiner
from flmm_core.pipeline.types import Features
from performance.alternate import OURS, Case
from performance.models import build_backbone, caption_for, image_for
from performance.tables import ratio, seconds, table

ENDS = (0, 1, 4)
HEADER = (
    "| model | last tokens | maps a phrase, KiB | recording, s | ratio | training step, s | ratio |"
)


@dataclass(frozen=True)
class Figures:
    """Of a number of last tokens: median CPU seconds, and bytes of a phrase's maps."""

    model: str
    ends: int
    bytes: int
    recording: float
    step: float


def measure(size: str, repeats: int, until: float) -> tuple[list[Figures], str]:
    """The figures, and their table."""
    names = ("qwen", "deepseek_vl", "llava_next") if size == "tiny" else ("medium",)
    rows = [row for name in names for row in _measure(name, size, repeats)]
    shown, mean = [], rows[0]
    for row in rows:
        mean = row if row.ends == 0 else mean
        cells = (
            f"{row.bytes / 1024:,.0f}",
            seconds(row.recording),
            ratio(row.recording / mean.recording),
        )
        step = seconds(row.step), ratio(row.step / mean.step)
        shown.append((row.model, row.ends or "mean", *cells, *step))
    return rows, table(HEADER, shown)


def _measure(name: str, size: str, repeats: int) -> list[Figures]:
    case = Case("", (OURS,), name, 0 if size == "tiny" else 700)
    backbone = build_backbone(case)
    image = image_for(case)
    batch = backbone.collate([backbone.prepare(image, caption_for(backbone, image, case))])
    width, side = (16, 32) if size == "tiny" else (64, 64)
    channels = backbone.attention_channels
    ways: dict[int, tuple[Callable[[], object], Callable[[], object]]] = {}
    sizes: dict[int, int] = {}
    for ends in ENDS:
        (trace,) = backbone.trace(batch, ends=ends)
        maps = attention_maps(trace)
        sizes[ends] = sum(each.nbytes for each in maps.tensors) // len(maps.maps)
        torch.manual_seed(0)
        pooling = LearnedPooling(ends, channels) if ends else None
        head = Head(MaskHead(channels, width, side), None, NoRefiner(), pooling=pooling).train()
        features = Features(maps, trace.hidden, trace.row_phrase, None, trace.image_hw)
        ways[ends] = (
            lambda ends=ends: attention_maps(backbone.trace(batch, ends=ends)[0]),
            lambda head=head, features=features: _step(head, features),
        )
    spent: dict[tuple[int, int], list[float]] = {(e, k): [] for e in ENDS for k in (0, 1)}
    for turn in range(repeats + 1):
        for ends, works in ways.items():
            for kind, work in enumerate(works):
                begun = time.process_time()
                work()
                if turn:  # the first one warms up
                    spent[ends, kind].append(time.process_time() - begun)
    return [
        Figures(name, ends, sizes[ends], median(spent[ends, 0]), median(spent[ends, 1]))
        for ends in ENDS
    ]


def _step(head: Head, features: Any) -> None:
    (grounding,) = head([features])
    grounding.coarse_logits.square().mean().backward()
    head.zero_grad()
