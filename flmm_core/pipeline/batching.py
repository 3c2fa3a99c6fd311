"""Padding samples together, and where their rows and columns then are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_core.pipeline.types import BackboneBatch


@dataclass(frozen=True)
class PlacedRows:
    """What the recorder must keep of a batch, in absolute places of the padded sequence.

    Attributes:
        rows: Per sample, (T,) int64 places of its phrases' tokens, phrase after phrase.
        columns: Per sample, (M,) int64 places of its image tokens, view after view.
        groups: Per sample, (T,) int64 the phrase of each row, ascending.
    """

    rows: tuple[Tensor, ...]
    columns: tuple[Tensor, ...]
    groups: tuple[Tensor, ...]


def place_rows(batch: BackboneBatch) -> PlacedRows:
    """The rows and columns that a batch's phrases and views stand for."""
    nothing = torch.zeros(0, dtype=torch.int64)
    rows, columns, groups = [], [], []
    for sample, offset in zip(batch.samples, batch.offsets, strict=True):
        lengths = torch.tensor([len(r) for r in sample.phrase_rows], dtype=torch.int64)
        rows.append(torch.cat([nothing, *sample.phrase_rows]) + offset)  # (T,)
        groups.append(torch.arange(len(lengths)).repeat_interleave(lengths))  # (T,)
        cells = [view.token_index.flatten() for view in sample.views]
        columns.append(torch.cat([nothing, *cells]) + offset)  # (M,)
    return PlacedRows(tuple(rows), tuple(columns), tuple(groups))


def pad_tokens(values: Sequence[Tensor], fill: int, side: Literal["right", "left"]) -> Tensor:
    """(S_b,) each -> (B, S), filled up to the longest on one side."""
    longest = max(len(value) for value in values)
    missing = [longest - len(value) for value in values]
    pads = [(0, n) if side == "right" else (n, 0) for n in missing]
    return torch.stack([F.pad(v, pad, value=fill) for v, pad in zip(values, pads, strict=True)])


def stack_padded(values: Sequence[Tensor]) -> Tensor:
    """(n_b, ...) each -> (sum of n_b, ...); later dimensions zero-padded at their end."""
    largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [big - size for big, size in zip(largest, value.shape[1:], strict=True)]
        padded.append(F.pad(value, [n for size in reversed(missing) for n in (0, size)]))
    return torch.cat(padded)
