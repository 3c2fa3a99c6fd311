"""Pads samples together, and says where their rows and columns then are."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flmm_core.pipeline.types import BackboneBatch, BackboneInputs, Captions, Prefix

Side = Literal["right", "left"]
Join = Callable[[str, Sequence[Tensor]], Tensor]


class PlacedRows(NamedTuple):
    """What to record of a batch, as positions in the padded sequence, int64.

    Attributes:
        rows: Per sample, (T,) of its phrases' tokens, phrase after phrase.
        columns: Per sample, (M,) of its image tokens, view after view.
        groups: Per sample, (T,) the phrase of each row, ascending; P for those of the caption.
    """

    rows: list[Tensor]
    columns: list[Tensor]
    groups: list[Tensor]


def place_rows(batch: BackboneBatch, captions: bool = False) -> PlacedRows:
    """The rows of a batch's phrases, then those of its captions, and the columns of its views."""
    nothing = torch.zeros(0, dtype=torch.int64)
    rows, columns, groups = [], [], []
    for sample, offset in zip(batch.samples, batch.offsets, strict=True):
        wanted = [*sample.phrase_rows]
        if captions and len(sample.caption):
            wanted.append(torch.arange(sample.start, len(sample)))
        lengths = torch.tensor([len(r) for r in wanted], dtype=torch.int64)
        rows.append(torch.cat([nothing, *wanted]) + offset)  # (T,)
        groups.append(torch.arange(len(lengths)).repeat_interleave(lengths))  # (T,)
        cells = [view.token_index.flatten() for view in sample.views]
        columns.append(torch.cat([nothing, *cells]) + offset)  # (M,)
    return PlacedRows(rows, columns, groups)


def collate(
    samples: Sequence[BackboneInputs],
    *,
    tokenizer: Any,
    side: Side,
    join: Join,
    share: bool,
    apart: bool = False,
) -> BackboneBatch:
    """Samples as one batch; see `Backbone.collate`.

    Args:
        samples: At least one.
        tokenizer: Its padding token fills sequences up.
        side: Where it goes.
        join: `Backbone.join`, for the tensors of images.
        share: Run a prefix that several samples hold once, if every sample has a caption. It ends
            where the first of their captions begins.
        apart: Keep captions apart from prefixes even if no two samples hold the same.
    """
    known = tokenizer.pad_token_id, tokenizer.eos_token_id, 0
    pad_id = next(i for i in known if i is not None)  # any will do: it is masked
    starts: dict[Prefix, int] = {}
    for sample in samples:
        starts[sample.prefix] = min(sample.start, starts.get(sample.prefix, sample.start))
    share &= apart or len(starts) < len(samples)
    share &= all(len(s.caption) for s in samples)
    if not share:
        prefixes = [sample.prefix for sample in samples]
        tokens, captions = [sample.tokens for sample in samples], None
        lengths = [len(sample) for sample in samples]
    else:
        prefixes, side = list(starts), "left"
        tokens = [{k: v[:end] for k, v in each.tokens.items()} for each, end in starts.items()]
        lengths = [starts[sample.prefix] for sample in samples]
        ids = [
            {"input_ids": sample.tokens["input_ids"][length:]}
            for sample, length in zip(samples, lengths, strict=True)
        ]
        which = torch.tensor([prefixes.index(sample.prefix) for sample in samples])
        captions = Captions(which, **_pad_together(ids, pad_id, "right"))
    tensors = _pad_together(tokens, pad_id, side)
    for key in prefixes[0].image:
        tensors[key] = join(key, [prefix.image[key] for prefix in prefixes])
    longest = tensors["input_ids"].shape[1]
    return BackboneBatch(
        tensors=tensors,
        samples=tuple(samples),
        offsets=tuple(longest - length if side == "left" else 0 for length in lengths),
        captions=captions,
    )


def _pad_together(
    tokens: Sequence[Mapping[str, Tensor]], pad_id: int, side: Side
) -> dict[str, Tensor]:
    """Per-token tensors (S_b,) -> (B, S), with an `attention_mask` that is 0 at padding."""
    tokens = [{**each, "attention_mask": torch.ones_like(each["input_ids"])} for each in tokens]
    fill = {"input_ids": pad_id}
    return {
        key: pad_sequence([each[key] for each in tokens], True, fill.get(key, 0), side)
        for key in tokens[0]
    }


def stack_padded(values: Sequence[Tensor]) -> Tensor:
    """(n_b, ...) each -> (sum of n_b, ...); later dimensions zero-padded at their end."""
    largest = [max(sizes) for sizes in zip(*(value.shape[1:] for value in values), strict=True)]
    padded = []
    for value in values:
        missing = [big - size for big, size in zip(largest, value.shape[1:], strict=True)]
        padded.append(F.pad(value, [n for size in reversed(missing) for n in (0, size)]))
    return torch.cat(padded)


def to_vlm(vlm: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Moved to the VLM's device, pixels in its dtype."""
    device, dtype = vlm.device, vlm.dtype
    if device.type == "meta":  # offloaded: accelerate's hooks move the inputs
        device = torch.device("cpu")
    return {  # page-locked tensors are copied while the CPU goes on
        k: v.to(device, dtype if v.is_floating_point() else None, non_blocking=v.is_pinned())
        for k, v in tensors.items()
    }
