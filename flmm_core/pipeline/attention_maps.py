"""Stage 2: the recorded attention -> one stack of maps per phrase.

The attention of each phrase to the image tokens is laid out on the grids of the views, normalized,
and resampled to one frame: that of the view with the most cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import AttentionMaps, ImageView, Trace

SMALLEST_SUM = 1e-12


def attention_maps(trace: Trace) -> AttentionMaps:
    """Gather a trace's attention by view.

    Args:
        trace: `attention` (L, N, P, M), the cells of all views, row-major, view after view; so
            are its `ends`.

    Returns:
        Maps (P, C, h, w) in the frame of the view with the most cells (the first of equals).
        Channels: view-major, then layer, then head. Each map is divided by its sum over its view
        before any resampling.
    """
    grids = [view.token_index.shape for view in trace.views]
    frame = max(range(len(grids)), key=lambda v: grids[v].numel())
    maps = _laid_out(trace.attention, trace.views, frame)  # (P, C, h, w)
    ends = None
    if trace.ends is not None:
        phrases, count = trace.ends.shape[2:4]
        ends = _laid_out(trace.ends.flatten(2, 3), trace.views, frame)
        ends = ends.unflatten(0, (phrases, count))  # (P, K, C, h, w)
    return AttentionMaps(maps, trace.views[frame].image_box, ends)


def _laid_out(attention: Tensor, views: Sequence[ImageView], frame: int) -> Tensor:
    """(L, N, P, M) -> (P, C, h, w) in the frame of one of the views."""
    grids = [view.token_index.shape for view in views]
    phrases = attention.flatten(0, 1).transpose(0, 1)  # (P, L * N, M)
    parts = phrases.split([h * w for h, w in grids], dim=2)
    maps = [
        _normalize(part).unflatten(2, grid)  # (P, L * N, h, w)
        for part, grid in zip(parts, grids, strict=True)
    ]
    box, size = views[frame].image_box, grids[frame]
    aligned = [
        resample(each, view.image_box, box, (size[0], size[1]))
        for each, view in zip(maps, views, strict=True)
    ]
    return torch.cat(aligned, dim=1)  # (P, C, h, w)


def _normalize(part: Tensor) -> Tensor:
    """(P, L * N, cells) float32, each map summing to 1."""
    part = part.float()
    return part / part.sum(dim=2, keepdim=True).clamp(min=SMALLEST_SUM)
