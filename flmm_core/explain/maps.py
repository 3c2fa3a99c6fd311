"""Maps of all words of a text, in one way of looking; sinks, peaks, and what looks at a place."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

SINK = 10.0
"""A cell with so many times the mean share of a map, in the map of every row, is a sink."""
ROWS = 4
"""Fewest rows that tell a sink from what all of a few words mean."""
TEMPERATURE = 3.0
"""Of softened maps. Attention is a softmax: its highest cell says where a name is read best, the
cells around it where the thing is. docs/explain.md has what that changes."""
REACH = 1.0
"""How far a place extends, in cells (the sigma of a Gaussian): maps are no finer."""
FINE = 9
"""Places a cell, on each axis, among which a peak is looked for; odd, so that one is its center."""


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

    def softened(self) -> Maps:
        """The same at `TEMPERATURE`: what the softmax gives of scores divided by it.

        Only the cells of the image are scaled to add up to 1, as in any map. Probabilities stay
        as they are.
        """
        if self.probabilities:
            return self
        words, prompt = (scaled(maps ** (1 / TEMPERATURE)) for maps in (self.words, self.prompt))
        return Maps(words, prompt)

    def shares(self, weights: Floats) -> tuple[Floats, float]:
        """Of each word's map, the share on weighted cells (h, w): (W,); and the mean of all rows.

        The prompt's rows count in the mean.
        """
        words, prompt = ((scaled(maps) * weights).sum((1, 2)) for maps in (self.words, self.prompt))
        return words, float(np.concatenate([words, prompt]).mean())


def peak_of(values: Floats) -> tuple[float, float]:
    """(y, x) the highest point of a map (h, w), in fractions of its height and width.

    It lies between the centers of cells: the map is enlarged with a Gaussian of `REACH` cells.
    """
    rows, columns = (_enlarging(cells) for cells in values.shape)
    fine = rows @ values.astype(np.float64) @ columns.T
    row, column = divmod(int(fine.argmax()), fine.shape[1])
    return (row + 0.5) / len(rows), (column + 0.5) / len(columns)


def _enlarging(cells: int) -> NDArray[np.float64]:
    """(cells * FINE, cells) the weight of each cell at each place."""
    places = (np.arange(cells * FINE) + 0.5) / FINE - 0.5
    apart = places[:, None] - np.arange(cells)
    return np.asarray(np.exp(-(apart**2) / (2 * REACH**2)))


def scaled(maps: Floats) -> Floats:
    """(n, h, w) maps, each divided by its sum."""
    total = maps.sum((1, 2), keepdims=True)
    return np.asarray(maps / np.maximum(total, 1e-12), np.float32)
