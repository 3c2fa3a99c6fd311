"""Maps of all words of a text, in one way of looking; and which cells are attention sinks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SINK = 10.0
"""A cell with so many times the mean share of a map, in the map of every row, is a sink."""
ROWS = 4
"""Fewest rows that tell a sink from what all of a few words mean."""


@dataclass(frozen=True, eq=False)
class Maps:
    """A map for each word, covering exactly the image.

    Attributes:
        words: (W, h, w) float32, not negative.
        prompt: (R, h, w), of tokens of the prompt, which do not know the text.
        probabilities: Whether values are probabilities, 0 to 1, rather than shares of a word's
            attention to the image, which add up to 1.
    """

    words: Floats
    prompt: Floats
    probabilities: bool = False

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w)."""
        return (self.words.shape[1], self.words.shape[2])

    @property
    def sinks(self) -> NDArray[np.bool_]:
        """(h, w) the cells that every row looks at, whatever its word.

        They get at least `SINK` times the mean share from each word and each token of the prompt.
        Such visual sinks are described by Kang et al., "See What You Are Told: Visual Attention
        Sink in Large Multimodal Models" (ICLR 2025), who tell them by their hidden states.
        """
        rows = np.concatenate([self.words, self.prompt])
        if self.probabilities or len(rows) < ROWS:
            return np.zeros(self.grid, bool)
        return np.asarray(rows.min(0) * rows[0].size > SINK)

    def without_sinks(self) -> Maps:
        """The same with sinks at 0, and the rest of each map scaled to add up to 1 again."""
        sinks = self.sinks
        if not sinks.any():
            return self
        words, prompt = (scaled(np.where(sinks, 0, maps)) for maps in (self.words, self.prompt))
        return Maps(words, prompt)

    def shares(self, weights: Floats) -> tuple[Floats, float]:
        """Of each word's map, the share on weighted cells (h, w): (W,); and the mean of all rows.

        The prompt's rows count in the mean.
        """
        words, prompt = ((scaled(maps) * weights).sum((1, 2)) for maps in (self.words, self.prompt))
        return words, float(np.concatenate([words, prompt]).mean())


def scaled(maps: Floats) -> Floats:
    """(n, h, w) maps, each divided by its sum."""
    total = maps.sum((1, 2), keepdims=True)
    return np.asarray(maps / np.maximum(total, 1e-12), np.float32)
