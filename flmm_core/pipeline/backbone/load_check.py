"""Checks that a loaded model does what its backbone promises, on one drawn image.

They see effects, not settings: the attention that the model used against the attention that is
recorded, and which tokens change when a part of the image is repainted. So they notice what a new
version of a library changes without a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    Some tokens answer to any change more than others do, as at edges, or in a tile that shows less
    of the part. So, before a view is called misplaced, all but the part is repainted, too, and what
    counts is how much more a token changes with the part than with the rest.

    Args:
        inputs: What `prepare` gave for the image.
        embedded: (S, D), as the language model received it.
    """
    parts = [_part(view) for view in inputs.views]
    changes = _changes(backbone, image, inputs, embedded, parts)
    if not any(map(_fault, parts, changes)):
        return []
    rest = _changes(backbone, image, inputs, embedded, parts, rest=True)
    more = [one / other.clamp(min=1e-12) for one, other in zip(changes, rest, strict=True)]
    faults = zip(inputs.views, map(_fault, parts, more), strict=True)
    return [f"view '{view.name}': {fault}" for view, fault in faults if fault]


def _changes(
    backbone: Backbone,
    image: Image.Image,
    inputs: BackboneInputs,
    embedded: Tensor,
    parts: Sequence[Part],
    *,
    rest: bool = False,
) -> list[Tensor]:
    """(h, w) by view: how far each cell's token moves with its part, or the rest, repainted."""
    both = list(zip(inputs.views, parts, strict=True))
    images = [_repainted(image, view, part, rest=rest) for view, part in both]
    batch = backbone.collate([backbone.prepare(each, CAPTION[:1]) for each in images])
    repainted = decoder_inputs(backbone, batch)["inputs_embeds"]  # (V, S, D)
    end = min(repainted.shape[1], len(embedded))  # captions differ in length
    moved = repainted[:, :end].float() - embedded[:end].float()
    distance = torch.linalg.vector_norm(moved, dim=-1).cpu()  # (V, S)
    return [one[view.token_index] for one, view in zip(distance, inputs.views, strict=True)]


def _fault(part: Part, change: Tensor) -> str:
    """What is wrong if the cells of a part should change most, (h, w); empty if nothing is."""
    if not change.any():
        return "when a part of the image is repainted, no token of the view changes"
    grid = change.shape
    ranks = change.flatten().argsort().argsort().view(grid)
    fits = {
        (dy, dx): _fit(ranks, moved)
        for dy in (-1, 0, 1)
        for dx in (-1, 0, 1)
        if (moved := _moved(part, dy, dx, grid)) is not None
    }
    share, here = fits.pop((0, 0))
    if not share >= TELLS:
        return (
            "when a part of the image is repainted, the cells there change more than others in "
            f"only {share:.0%} of pairs"
        )
    best = max(fits, key=lambda place: fits[place][1], default=None)
    if best is not None and fits[best][1] > here * CLEARLY:
        return (
            f"a repainted part of the image is {best[0]} rows and {best[1]} columns from where "
            "its grid has it"
        )
    return ""


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


def _repainted(
    image: Image.Image, view: ImageView, part: Part, *, rest: bool = False
) -> Image.Image:
    """The image with the cells of a part, or all others, in colors far from what they were."""
    (h, w), (y0, x0, y1, x1) = view.token_index.shape, view.image_box
    top, bottom = ((y0 + row * (y1 - y0) / h) * image.height for row in part[:2])
    left, right = ((x0 + column * (x1 - x0) / w) * image.width for column in part[2:])
    pixels = np.array(image)
    painted = np.where(pixels < 128, np.uint8(255), np.uint8(0))
    inner = slice(round(top), round(bottom)), slice(round(left), round(right))
    if rest:
        painted[inner] = pixels[inner]
        return Image.fromarray(painted)
    pixels[inner] = painted[inner]
    return Image.fromarray(pixels)
