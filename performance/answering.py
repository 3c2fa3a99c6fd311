"""What recording attention adds to writing an answer, and what finding the rows takes afterwards.

Both ways alternate in one process, with the same weights, by the CPU's seconds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from performance.alternate import Case
from performance.models import build_backbone, image_for
from performance.tables import ratio, seconds, table

NEW_TOKENS = 64
PHRASES = 8
PROMPT_TOKENS = 700
TABLE = "| model | prompt | new | generate, s | recorded, s | recorded / generate | 8 phrases, s |"


@dataclass(frozen=True)
class Answering:
    """CPU seconds of each run: `generate` alone, `Backbone.reply`, and the rows of 8 phrases."""

    model: str
    prompt_tokens: int
    bare: tuple[float, ...]
    recorded: tuple[float, ...]
    rows: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Of the medians of what alternated."""
        return statistics.median(
            recorded / bare for recorded, bare in zip(self.recorded, self.bare, strict=True)
        )


def measure(size: str, repeats: int, until: float) -> tuple[list[Answering], str]:
    """The figures, and their table."""
    names = ("qwen", "deepseek_vl", "llava_next") if size == "tiny" else ("medium",)
    rows = [answering(name, repeats) for name in names if time.monotonic() < until]
    lines = [
        (
            row.model,
            row.prompt_tokens,
            NEW_TOKENS,
            seconds(statistics.median(row.bare)),
            seconds(statistics.median(row.recorded)),
            ratio(row.ratio),
            seconds(statistics.median(row.rows)),
        )
        for row in rows
    ]
    return rows, table(TABLE, lines)


@torch.no_grad()
def answering(model: str, repeats: int) -> Answering:
    """The runs of one model."""
    tokens = PROMPT_TOKENS if model == "medium" else 0
    case = Case("", (), model, tokens)
    backbone, image = build_backbone(case), image_for(case)
    how: dict[str, Any] = {"min_new_tokens": NEW_TOKENS, "max_new_tokens": NEW_TOKENS}
    plain = backbone.reply(image, "What is this?", record=False, **how)
    assert len(plain.token_ids) == NEW_TOKENS
    bare, recorded, rows = [], [], []
    for _ in range(repeats):
        bare.append(_taken(lambda: backbone.reply(image, "What is this?", record=False, **how))[0])
        taken, reply = _taken(lambda: backbone.reply(image, "What is this?", **how))
        assert torch.equal(reply.token_ids, plain.token_ids)
        recorded.append(taken)
        rows.append(_taken(lambda: reply.trace(_phrases(reply.offsets)))[0])  # noqa: B023
        backbone.forget()
    return Answering(model, reply.first, tuple(bare), tuple(recorded), tuple(rows))


def _phrases(offsets: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    said = [(start, end) for start, end in offsets if start < end]
    step = max(1, len(said) // PHRASES)
    return [(said[at][0], said[min(len(said) - 1, at + 2)][1]) for at in range(0, len(said), step)]


def _taken(work: Callable[[], Any]) -> tuple[float, Any]:
    began = time.process_time()
    result = work()
    return time.process_time() - began, result
