"""Padding samples together, and where their rows and columns then are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_core.pipeline.types import BackboneBatch, BackboneInputs, Captions, Trace

Side = Literal["right", "left"]


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


def make_traces(
    batch: BackboneBatch,
    placed: PlacedRows,
    attention: Sequence[Tensor],
    hidden: Sequence[Tensor],
) -> tuple[Trace, ...]:
    """What was recorded of each sample: (L, N, P, M) attention, (L, T, D) hidden states."""
    return tuple(
        Trace(
            attention=attention[b],
            hidden=hidden[b],
            row_phrase=placed.groups[b].to(hidden[b].device),
            views=sample.views,
            image_hw=sample.image_hw,
        )
        for b, sample in enumerate(batch.samples)
    )


def collate(
    samples: Sequence[BackboneInputs],
    *,
    pad_id: int,
    side: Side,
    join: Callable[[str, Sequence[Tensor]], Tensor],
    share: bool,
) -> BackboneBatch:
    """Samples as one batch.

    Args:
        samples: At least one.
        pad_id: The padding token.
        side: Where it goes; shared prompts always have it before them.
        join: Makes one tensor of those without a token dimension, see `Backbone._join`.
        share: Whether a prompt may run apart from its captions, if there is a caption in each.
    """
    share &= all(len(s.tensors["input_ids"]) > s.prompt_length > 0 for s in samples)
    numbers = prompt_numbers(samples) if share else list(range(len(samples)))
    distinct = dict(zip(numbers, samples, strict=True))
    if len(distinct) == len(samples):
        tensors = _join_tensors([sample.tensors for sample in samples], pad_id, side, join)
        longest = tensors["input_ids"].shape[1]
        lengths = [len(sample.tensors["input_ids"]) for sample in samples]
        offsets = tuple(longest - length if side == "left" else 0 for length in lengths)
        return BackboneBatch(tensors=tensors, samples=tuple(samples), offsets=offsets)
    prompts = [prompt_of(distinct[number]) for number in sorted(distinct)]
    tensors = _join_tensors(prompts, pad_id, "left", join)
    longest = tensors["input_ids"].shape[1]
    return BackboneBatch(
        tensors=tensors,
        samples=tuple(samples),
        offsets=tuple(longest - sample.prompt_length for sample in samples),
        captions=_collate_captions(samples, numbers, pad_id),
    )


def _join_tensors(
    samples: Sequence[Mapping[str, Tensor]],
    pad_id: int,
    side: Side,
    join: Callable[[str, Sequence[Tensor]], Tensor],
) -> dict[str, Tensor]:
    """What the VLM's forward takes, with `attention_mask`."""
    tensors = {}
    for key, first in samples[0].items():
        values = [sample[key] for sample in samples]
        if first.shape == samples[0]["input_ids"].shape:
            fill = pad_id if key == "input_ids" else 0
            tensors[key] = pad_tokens(values, fill, side)  # (B, S)
        else:
            tensors[key] = join(key, values)
    ones = [torch.ones_like(sample["input_ids"]) for sample in samples]
    tensors["attention_mask"] = pad_tokens(ones, 0, side)
    return tensors


def prompt_numbers(samples: Sequence[BackboneInputs]) -> list[int]:
    """Per sample, the number of its prompt; equal where `prepare` took one over from another."""
    numbers: dict[tuple[Any, ...], int] = {}
    found = []
    for sample in samples:
        ids = sample.tensors["input_ids"]
        picture = (id(v) for v in sample.tensors.values() if v.shape != ids.shape)
        words = tuple(ids[: sample.prompt_length].tolist())
        found.append(numbers.setdefault((*picture, words), len(numbers)))
    return found


def prompt_of(sample: BackboneInputs) -> dict[str, Tensor]:
    """The tensors of a sample's image and prompt, without its caption."""
    shape, length = sample.tensors["input_ids"].shape, sample.prompt_length
    return {k: v[:length] if v.shape == shape else v for k, v in sample.tensors.items()}


def _collate_captions(
    samples: Sequence[BackboneInputs], numbers: Sequence[int], pad_id: int
) -> Captions:
    """The captions of samples, padded on the right."""
    captions = [sample.tensors["input_ids"][sample.prompt_length :] for sample in samples]
    return Captions(
        prompt=torch.tensor(numbers),
        input_ids=pad_tokens(captions, pad_id, "right"),
        attention_mask=pad_tokens([torch.ones_like(ids) for ids in captions], 0, "right"),
    )


def pad_tokens(values: Sequence[Tensor], fill: int, side: Side) -> Tensor:
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
