"""Masks as logits at the resolution that they were decided at, enlarged where they are needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from flmm_core.pipeline.resample import WHOLE_IMAGE, resample, resize

PORTION = 1 << 24
"""About how many pixels of masks are enlarged at a time; at least one mask is."""
BAND = 1 << 22
"""About how many pixels of masks are summed at a time; at least one row is."""


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
        logits = self.low.float()
        if self.canvas is not None:  # as in segment-anything
            h, w = self.canvas.shown_hw
            logits = resize(logits, (self.canvas.side, self.canvas.side))[:, :h, :w]
        return logits if logits.shape[1:] == self.image_hw else resize(logits, self.image_hw)

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


def judge(coarse_logits: Tensor, logits: Tensor) -> tuple[Tensor, Tensor]:
    """How sure masks are, and how much speaks for them, 0 to 1.

    A refiner that was led astray is sure of its mask, but leaves the coarse one. So the evidence
    is the score times the agreement of the two stages: the dice of both probabilities; the IoU of
    the masks separates right from wrong worse.

    Args:
        coarse_logits: (P, h, w).
        logits: (P, H, W) at the image's size.

    Returns:
        Scores (P,), the mean probability over each mask's pixels, 0 for an empty one; and the
        evidence (P,). Both float32 on the CPU.
    """
    p, height, width = logits.shape
    rough = coarse_logits.float().sigmoid()[:, None]  # (P, 1, h, w)
    sums = torch.zeros(4, p, dtype=torch.float64)  # over bands: no second full-size tensor
    rows = max(1, BAND // max(1, p * width))
    for top in range(0, height if p else 0, rows):
        band = logits[:, top : top + rows].float()
        probs, end = band.sigmoid(), top + band.shape[1]
        inside = band > 0
        box = (top / height, 0.0, end / height, 1.0)
        seen = resample(rough, WHOLE_IMAGE, box, (end - top, width))[:, 0].to(probs)
        parts = inside, probs * inside, seen * probs, seen + probs
        found = torch.stack([part.flatten(1).sum(1, dtype=torch.float32) for part in parts])
        sums += found.cpu()
    pixels, sure, both, either = sums
    scores = sure / pixels.clamp(min=1)
    evidence = scores * 2 * both / either.clamp(min=1e-9)
    return scores.float(), evidence.float()
