"""Calibration error: probabilities compared with the share of masks that are right. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

BINS = 15
UNIT = 1 << 64
"""Probabilities are summed in units of 2^-64, exactly and in any order."""


@dataclass
class Reliability:
    """Running sums over masks, in bins of equal width of their probability.

    Bin k of B holds k/B <= p < (k+1)/B, the last one also p = 1.

    Attributes:
        counts: Masks in each bin.
        hits: Those that are right (IoU >= 0.5).
        units: Sum of their probabilities, in units of 2^-64.
    """

    counts: list[int] = field(default_factory=lambda: [0] * BINS)
    hits: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.hits = self.hits or [0] * len(self.counts)
        self.units = self.units or [0] * len(self.counts)

    def add(self, probability: float, right: bool) -> None:
        """Count one mask."""
        if not 0 <= probability <= 1:
            raise ValueError(f"a probability of {probability}")
        bins = len(self.counts)
        units = int(math.ldexp(probability, 64))
        place = min(units * bins // UNIT, bins - 1)
        self.counts[place] += 1
        self.hits[place] += right
        self.units[place] += units

    def merge(self, other: Reliability) -> None:
        """Count the masks of another one with as many bins."""
        for own, more in (
            (self.counts, other.counts), (self.hits, other.hits), (self.units, other.units),
        ):  # fmt: skip
            own[:] = [a + b for a, b in zip(own, more, strict=True)]

    @property
    def stated(self) -> list[float]:
        """Mean probability in each bin; nan if it is empty."""
        return self._per_mask(self.units, UNIT)

    @property
    def right(self) -> list[float]:
        """Share of right masks in each bin; nan if it is empty."""
        return self._per_mask(self.hits, 1)

    @property
    def error(self) -> float:
        """Expected calibration error, 0 to 1; nan without masks.

        The mean over masks of their bin's |share right - mean probability| (Naeini et al., AAAI
        2015; Guo et al., ICML 2017).
        """
        gaps = sum(abs(n * UNIT - u) for n, u in zip(self.hits, self.units, strict=True))
        masks = sum(self.counts)
        return gaps / (masks * UNIT) if masks else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; empty bins are omitted."""
        bins = len(self.counts)
        return {
            "ece": self.error if any(self.counts) else None,
            "masks": sum(self.counts),
            "bins": [
                {
                    "from": place / bins,
                    "to": (place + 1) / bins,
                    "masks": count,
                    "mean_probability": self.stated[place],
                    "share_right": self.right[place],
                }
                for place, count in enumerate(self.counts)
                if count
            ],
        }

    def _per_mask(self, sums: list[int], unit: int) -> list[float]:
        pairs = zip(sums, self.counts, strict=True)
        return [total / (count * unit) if count else math.nan for total, count in pairs]
