"""Checks that a loaded model does what its backbone promises, on one drawn image.

They see effects, not settings: the attention that the model used against the attention that is
recorded, and which tokens change when a part of the image is repainted. So they notice what a new
version of a library changes without a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from flmm_core.pipeline.backbone.eager import own_eager
from flmm_core.pipeline.backbone.probe import CAPTION, decoder_inputs
from flmm_core.pipeline.backbone.recorder import WITNESS
from flmm_core.pipeline.backbone.rows import Scores, attention_rows
from flmm_core.pipeline.types import BackboneInputs, ImageView

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone

LATER = 1e-3
"""Share of a row's attention that may go to later tokens."""
OTHERWISE = {torch.float32: 0.005}
"""Relative difference of what a layer's attention gave from what it should have, by dtype."""
OTHERWISE_HALF = 0.06
TELLS = 0.7
"""Share of pairs of a repainted cell and another in which the repainted one changes more."""
CLEARLY = 1.02
"""A repainted part that is elsewhere fits this much better there."""


@dataclass
class Witness:
    """What the layers did with some rows: worst values over all of them.

    Attributes:
        later: Share of a row's attention on later tokens.
        otherwise: Relative difference of a layer's output from recorded attention times values,
            and of recorded attention from that of the family's own eager function.
    """

    rows: Tensor
    later: list[Tensor] = field(default_factory=list)
    otherwise: list[Tensor] = field(default_factory=list)

    @contextmanager
    def watching(self, decoder: Any) -> Iterator[None]:
        """See each layer's attention while the recorder is armed."""
        with ExitStack() as undo:
            for layer in decoder.layers:
                setattr(layer.self_attn, WITNESS, self._see)
                undo.callback(delattr, layer.self_attn, WITNESS)
            yield

    def _see(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        output: Tensor,
        **kwargs: Any,
    ) -> None:
        """Of one layer: (1, N, S, d), (1, N_kv, S, d) twice, and its output (1, S, N, d)."""
        rows = self.rows.to(query.device)
        keys = key.shape[2]
        bias = None if mask is None else mask[0][:, rows, :keys]
        probs = attention_rows(
            query[0][:, rows], key[0], bias, rows, Scores.of(query, kwargs)
        )  # (N, T, S)
        later = torch.arange(keys, device=rows.device) > rows[:, None]
        self.later.append((probs * later).sum(-1).max())
        each = value[0].float().repeat_interleave(len(probs) // len(value[0]), 0)  # (N, S, d)
        expected, used = torch.matmul(probs, each), output[0, rows].transpose(0, 1).float()
        self.otherwise.append(_apart(used, expected))
        if (eager := own_eager(module)) is not None:  # what sdpa and the recording both leave out
            weights = eager(module, query, key, value, mask, **kwargs)[1]
            self.otherwise[-1] = self.otherwise[-1].maximum(_apart(probs, weights[0, :, rows]))

    def faults(self, dtype: torch.dtype) -> list[str]:
        """What was wrong, in words."""
        faults = []
        later, layer = _worst(self.later)
        if not later <= LATER:
            faults.append(
                f"attention: {later:.0%} of a token's attention is on later tokens (layer {layer})"
            )
        otherwise, layer = _worst(self.otherwise)
        if not otherwise <= OTHERWISE.get(dtype, OTHERWISE_HALF):
            faults.append(
                "attention: what the model used is not the causal attention that is recorded; "
                f"its result differs by {otherwise:.0%} (layer {layer})"
            )
        return faults


def _apart(found: Tensor, expected: Tensor) -> Tensor:
    """The relative difference of two tensors."""
    expected = expected.float()
    difference: Tensor = (found - expected).norm() / expected.norm().clamp(min=1e-12)
    return difference


def _worst(values: list[Tensor]) -> tuple[float, int]:
    every = torch.stack([value.cpu() for value in values]).nan_to_num(nan=torch.inf)
    worst, layer = every.max(0)
    return float(worst), int(layer)


def misplaced_views(
    backbone: Backbone, image: Image.Image, inputs: BackboneInputs, embedded: Tensor
) -> list[str]:
    """Views whose cells are not where the image is repainted, in words.

    A part of the image is repainted for each view. The tokens of the cells there must change more
    than the others, as the language model receives them, and no part one cell aside may fit better.

    Args:
        inputs: What `prepare` gave for the image.
        embedded: (S, D), as the language model received it.
    """
    parts = [_part(view) for view in inputs.views]
    pictures = [_repainted(image, v, p) for v, p in zip(inputs.views, parts, strict=True)]
    batch = backbone.collate([backbone.prepare(each, CAPTION[:1]) for each in pictures])
    repainted = decoder_inputs(backbone, batch)["inputs_embeds"]  # (V, S, D)
    faults = []
    for view, part, changed in zip(inputs.views, parts, repainted, strict=True):
        end = min(len(changed), len(embedded))  # captions differ in length
        change = changed[:end].float() - embedded[:end].float()
        distance = torch.linalg.vector_norm(change, dim=-1).cpu()  # (S,)
        if not distance[view.token_index].any():
            told = "when a part of the image is repainted, no token of the view changes"
            faults.append(f"view '{view.name}': {told}")
            continue
        ranks = distance[view.token_index].flatten().argsort().argsort()
        grid = view.token_index.shape
        fits = {
            (dy, dx): _fit(ranks.view(grid), moved)
            for dy in (-1, 0, 1)
            for dx in (-1, 0, 1)
            if (moved := _moved(part, dy, dx, grid)) is not None
        }
        share, here = fits.pop((0, 0))
        best = max(fits, key=lambda place: fits[place][1], default=None)
        if not share >= TELLS:
            faults.append(
                f"view '{view.name}': when a part of the image is repainted, the cells there "
                f"change more than others in only {share:.0%} of pairs"
            )
        elif best is not None and fits[best][1] > here * CLEARLY:
            faults.append(
                f"view '{view.name}': a repainted part of the image is {best[0]} rows and "
                f"{best[1]} columns from where its grid has it"
            )
    return faults


Part = tuple[int, int, int, int]
"""(first row, end row, first column, end column) of cells."""


def _part(view: ImageView) -> Part:
    """About half the rows and columns of those that lie within the image, off the middle."""
    h, w = view.token_index.shape
    y0, x0, y1, x1 = view.image_box
    return *_middle(h, y0, y1), *_middle(w, x0, x1)


def _middle(count: int, begin: float, end: float) -> tuple[int, int]:
    size = (end - begin) / count
    inside = [i for i in range(count) if begin + i * size >= -1e-6]
    inside = [i for i in inside if begin + (i + 1) * size <= 1 + 1e-6] or list(range(count))
    half = max(1, len(inside) // 2)
    first = inside[0] + min(1, len(inside) - half)
    return first, first + half


def _moved(part: Part, dy: int, dx: int, grid: torch.Size) -> Part | None:
    top, bottom, left, right = part
    inside = top + dy >= 0 and bottom + dy <= grid[0] and left + dx >= 0 and right + dx <= grid[1]
    return (top + dy, bottom + dy, left + dx, right + dx) if inside else None


def _fit(ranks: Tensor, part: Part) -> tuple[float, float]:
    """How well a part holds the highest of all ranks (h, w).

    Returns:
        The share of pairs of a cell within and one without in which the first ranks higher, and
        the same as a number of standard deviations (Mann-Whitney).
    """
    top, bottom, left, right = part
    own = ranks[top:bottom, left:right]
    within, total = own.numel(), ranks.numel()
    pairs = within * (total - within)
    if not pairs:
        return 1.0, 0.0
    higher = float(own.sum()) - within * (within - 1) / 2
    deviation = (pairs * (total + 1) / 12) ** 0.5
    return higher / pairs, (higher - pairs / 2) / deviation


def _repainted(image: Image.Image, view: ImageView, part: Part) -> Image.Image:
    """The image with the cells of a part painted over, each color far from what it was."""
    (h, w), (y0, x0, y1, x1) = view.token_index.shape, view.image_box
    top, bottom = ((y0 + row * (y1 - y0) / h) * image.height for row in part[:2])
    left, right = ((x0 + column * (x1 - x0) / w) * image.width for column in part[2:])
    pixels = np.array(image)
    inner = pixels[round(top) : round(bottom), round(left) : round(right)]
    inner[...] = np.where(inner < 128, 255, 0)
    return Image.fromarray(pixels)
