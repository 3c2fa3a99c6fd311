"""Stage 2: the recorded attention -> one stack of maps per phrase.

The attention of each phrase to the image tokens is laid out on the grids of the views, normalized,
and resampled to one frame: that of the view with the most cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import AttentionMaps, Trace

SMALLEST_SUM = 1e-12


def attention_maps(trace: Trace) -> AttentionMaps:
    """Gather a trace's attention by view.

    Args:
        trace: `attention` (L, N, P, M), the cells of all views, row-major, view after view.

    Returns:
        Maps (P, C, h, w) in the frame of the view with the most cells (the first of equals).
        Channels: view-major, then layer, then head. Each map is divided by its sum over its view
        before any resampling.
    """
    grids = [view.token_index.shape for view in trace.views]
    phrases = trace.attention.flatten(0, 1).transpose(0, 1)  # (P, L * N, M)
    parts = phrases.split([h * w for h, w in grids], dim=2)
    maps = [
        _normalize(part).unflatten(2, grid)  # (P, L * N, h, w)
        for part, grid in zip(parts, grids, strict=True)
    ]
    frame = max(range(len(grids)), key=lambda v: grids[v].numel())
    box, size = trace.views[frame].image_box, grids[frame]
    aligned = [
        resample(each, view.image_box, box, (size[0], size[1]))
        for each, view in zip(maps, trace.views, strict=True)
    ]
    return AttentionMaps(maps=torch.cat(aligned, dim=1), image_box=box)  # (P, C, h, w)


def _normalize(part: Tensor) -> Tensor:
    """(P, L * N, cells) float32, each map summing to 1."""
    part = part.float()
    return part / part.sum(dim=2, keepdim=True).clamp(min=SMALLEST_SUM)
