"""Masks as logits at the resolution that they were decided at, enlarged where they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from flmm_core.pipeline.resample import WHOLE_IMAGE, resample, resize, resize_twice

PORTION = 1 << 20
"""About how many pixels of masks are enlarged at a time; at least one row is.

Four times as many leave holes of hundreds of megabytes in the heap after some masks.
"""


@dataclass(frozen=True)
class Canvas:
    """A square of `side` pixels, of which the top left `shown_hw` show the image."""

    side: int
    shown_hw: tuple[int, int]


@dataclass(frozen=True, eq=False)
class MaskLogits:
    """P masks of one image; `full() > 0` are the masks.

    P masks of a photo take gigabytes at its size, so they are kept as they were decided.

    Attributes:
        low: (P, h, w).
        size: H and W of the image; None if `low` has its size.
        canvas: What `low` covers; None if it covers exactly the image.
    """

    low: Tensor
    size: tuple[int, int] | None = None
    canvas: Canvas | None = None

    def __len__(self) -> int:
        return len(self.low)

    def __getitem__(self, which: slice) -> Self:
        return replace(self, low=self.low[which])

    @property
    def image_hw(self) -> tuple[int, int]:
        """H and W."""
        return self.size or (self.low.shape[1], self.low.shape[2])

    def full(self) -> Tensor:
        """(P, H, W) float32 at the image's size."""
        if self.canvas is not None and self.low.requires_grad:  # else the bits of segment-anything
            square = self.canvas.side, self.canvas.side
            return resize_twice(self.low.float(), square, self.canvas.shown_hw, self.image_hw)
        logits = self._shown()
        return logits if logits.shape[1:] == self.image_hw else resize(logits, self.image_hw)

    def bands(self) -> Iterator[tuple[slice, Tensor]]:
        """`full()` in bands of rows, (P, rows, W) each, with the rows that they are."""
        return bands(self._shown(), self.image_hw)

    def masks(self) -> Tensor:
        """(P, H, W) bool, `full() > 0`."""
        return above(self._shown(), self.image_hw, 0)

    def _shown(self) -> Tensor:
        """(P, h, w) float32 that cover exactly the image."""
        logits = self.low.float()
        if self.canvas is not None:  # as in segment-anything
            h, w = self.canvas.shown_hw
            logits = resize(logits, (self.canvas.side, self.canvas.side))[:, :h, :w]
        return logits

    def portions(self) -> Iterator[slice]:
        """All masks, in parts that can be enlarged together."""
        return portions(len(self), self.image_hw)

    def cpu(self) -> Self:
        """The same on the CPU."""
        return replace(self, low=self.low.cpu())

    @classmethod
    def cat(cls, parts: Sequence[MaskLogits]) -> MaskLogits:
        """All masks of some parts of one image, at least one."""
        return replace(parts[0], low=torch.cat([part.low for part in parts]))


def portions(count: int, size: tuple[int, int]) -> Iterator[slice]:
    """Slices of `count` masks with about `PORTION` pixels together, each mask of (H, W) pixels."""
    at_once = max(1, PORTION // max(1, size[0] * size[1]))
    return (slice(start, start + at_once) for start in range(0, count, at_once))


def bands(maps: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, Tensor]]:
    """`resize(maps, size)` in bands of rows: (P, rows, W) each, with the rows that they are.

    The bands of large images can differ from `resize` by the last bit.
    """
    (p, h, w), (height, width) = maps.shape, size
    rows = max(1, PORTION // max(1, p * width))
    if rows >= height or (h, w) == size:
        whole = maps if (h, w) == size else resize(maps, size)
        for top in range(0, height, rows):
            yield slice(top, top + rows), whole[:, top : top + rows]
        return
    across = resize(maps, (h, width))
    for top in range(0, height, rows):
        place = torch.arange(top, min(top + rows, height), device=maps.device)
        place = ((place + 0.5) * (h / height) - 0.5).clamp(min=0)[:, None]  # in rows of the maps
        upper = place.floor().long()[:, 0].clamp(max=h - 1)
        lower = (upper + 1).clamp(max=h - 1)
        share = (place - upper[:, None]).to(across)
        yield slice(top, top + rows), torch.lerp(across[:, upper], across[:, lower], share)


def above(maps: Tensor, size: tuple[int, int], level: float) -> Tensor:
    """(P, H, W) bool: where (P, h, w) maps are above a level after `resize` to (H, W)."""
    found = torch.empty(len(maps), *size, dtype=torch.bool, device=maps.device)
    for rows, band in bands(maps, size):
        found[:, rows] = band > level
    return found


def judge(coarse_logits: Tensor, refined: MaskLogits) -> tuple[Tensor, Tensor]:
    """How sure masks are, and how much speaks for them, 0 to 1.

    A refiner that was led astray is sure of its mask, but leaves the coarse one. So the evidence
    is the score times the agreement of the two stages: the dice of both probabilities; the IoU of
    the masks separates right from wrong worse.

    Args:
        coarse_logits: (P, h, w).
        refined: P masks.

    Returns:
        Scores (P,), the mean probability over each mask's pixels, 0 for an empty one; and the
        evidence (P,). Both float32 on the CPU.
    """
    height, width = refined.image_hw
    rough = coarse_logits.float().sigmoid()[:, None]  # (P, 1, h, w)
    sums = torch.zeros(4, len(rough), dtype=torch.float64)
    for rows, band in refined.bands():
        probs, end = band.sigmoid(), rows.start + band.shape[1]
        inside = band > 0
        box = (rows.start / height, 0.0, end / height, 1.0)
        seen = resample(rough, WHOLE_IMAGE, box, (band.shape[1], width))[:, 0].to(probs)
        parts = inside, probs * inside, seen * probs, seen + probs
        found = torch.stack([part.flatten(1).sum(1, dtype=torch.float32) for part in parts])
        sums += found.cpu()
    pixels, sure, both, either = sums
    scores = sure / pixels.clamp(min=1)
    evidence = scores * 2 * both / either.clamp(min=1e-9)
    return scores.float(), evidence.float()
