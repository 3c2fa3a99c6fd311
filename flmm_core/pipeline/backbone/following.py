"""What is kept of tokens while they are generated: their rows can be asked for afterwards.

Which words of an answer are to be grounded is known only once it is written. So each layer's
queries are kept, (N, d) a token, and its last keys, which the KV cache holds anyway. The rows of
the tokens that matter are computed from both: much less memory than the rows of all tokens, and
next to no time while the model writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flmm_core.errors import RunError
from flmm_core.pipeline.backbone.rows import (
    Scores,
    attention_rows,
    check_attention,
    pool_rows,
    pooling_weights,
    unsupported,
)


@dataclass
class Piece:
    """What one forward has of its tokens: `values` (..., t, n), the first token at `start`."""

    start: int
    values: Tensor
    mask: Tensor | None = None  # (1 or N, t, K) bool; None is causal

    @property
    def end(self) -> int:
        return self.start + self.values.shape[-2]


class Pieces(list[Piece]):
    """What all forwards have of their tokens, in order and without overlap."""

    def add(self, new: Piece) -> None:
        """Add what a forward ran; what it ran again, as speculative decoding does, is replaced."""
        self.cut(new.start)
        self.append(new)

    def cut(self, end: int) -> None:
        """Forget the tokens from a position on."""
        while self and self[-1].start >= end:
            self.pop()
        if self and self[-1].end > end:
            last, left = self[-1], end - self[-1].start
            mask = None if last.mask is None else last.mask[:, :left]
            self[-1] = Piece(last.start, last.values[..., :left, :], mask)

    def joined(self) -> Tensor:
        """(..., T, n) of all tokens."""
        return torch.cat([piece.values for piece in self], -2)


class Following:
    """The tokens from one position on, as one `follow` block has seen them.

    Attributes:
        first: The position of the first token.
    """

    def __init__(self, layers: int, first: int) -> None:
        self.first = first
        self._start = 0
        self._queries = [Pieces() for _ in range(layers)]
        self._states = [Pieces() for _ in range(layers)]
        self._keys: list[Tensor | None] = [None] * layers
        self._scores = [Scores(1.0)] * layers

    def __len__(self) -> int:
        """T, how many tokens all layers have run."""
        pieces = [*self._queries, *self._states]
        ends = [each[-1].end if each else 0 for each in pieces]
        return max(0, min(ends) - self.first)

    def begin(self, start: int) -> None:
        """Before a forward whose first token is at this position."""
        self._start = start

    @torch.no_grad()
    def see_attention(
        self,
        index: int,
        query: Tensor,
        key: Tensor,
        mask: Tensor | None,
        **kwargs: Any,
    ) -> None:
        """Keep of one layer: query (1, N, q, d), key (1, N_kv, K, d)."""
        check_attention(query, key, mask, kwargs, self._start, 1)
        if mask is not None and mask.dtype != torch.bool:
            raise unsupported("an additive attention mask")
        self._keys[index] = key
        self._scores[index] = Scores.of(query, kwargs)
        skip = max(0, self.first - self._start)
        if skip < query.shape[2]:
            rows = None if mask is None else mask[0, :, skip:].clone()
            self._queries[index].add(Piece(self._start + skip, query[0, :, skip:].clone(), rows))

    @torch.no_grad()
    def see_hidden(self, index: int, module: nn.Module, args: Any, output: Any) -> None:
        """Keep what a layer or the final norm returns, (1, q, D)."""
        states: Tensor = output[0] if isinstance(output, tuple) else output
        skip = max(0, self.first - self._start)
        if skip < states.shape[1]:
            self._states[index].add(Piece(self._start + skip, states[0, skip:].clone()))

    def attention(
        self,
        rows: Sequence[Tensor],
        columns: Tensor,
        pool: Literal["mean", "max"] = "mean",
        ends: int = 0,
    ) -> Tensor:
        """(L, N, P, M) float32 probabilities; with K `ends`, (L, N, P * (1 + K), M).

        Args:
            rows: Per phrase, (T_p,) positions of its tokens in the sequence.
            columns: (M,) positions of the wanted keys.
            pool: Over the rows of a phrase.
            ends: As for `pooling_weights`; with "mean" only.

        Raises:
            RunError: A token was never run.
        """
        places = torch.cat([torch.zeros(0, dtype=torch.int64), *rows])
        self._check(places)
        lengths = [len(each) for each in rows]
        groups = torch.arange(len(rows)).repeat_interleave(torch.tensor(lengths, dtype=torch.int64))
        weights = pooling_weights(groups, len(rows), ends)
        layers = []
        for pieces, key, scores in zip(self._queries, self._keys, self._scores, strict=True):
            assert key is not None
            device = key.device
            at = places.to(device)
            query = pieces.joined()[:, at - self.first]
            mask = self._mask(pieces, key.shape[2], at)
            probs = attention_rows(query, key[0], mask, at, scores)  # (N, T, K)
            if pool == "mean":
                pooled = pool_rows(weights.to(device), probs, len(rows))[..., columns.to(device)]
            else:
                parts = probs[..., columns.to(device)].split(lengths, 1)
                pooled = torch.stack([part.amax(1) for part in parts], 1)
            layers.append(pooled.to(self._queries[0][0].values.device))
        return torch.stack(layers)

    def hidden(self, places: Tensor) -> Tensor:
        """(L, T, D) float32 hidden states at (T,) positions, the last after the final norm.

        Raises:
            RunError: A token was never run.
        """
        self._check(places)
        layers = []
        for pieces in self._states:
            states = pieces.joined()
            layers.append(states[(places - self.first).to(states.device)].float())
        return torch.stack([states.to(layers[0].device) for states in layers])

    def _mask(self, pieces: Sequence[Piece], keys: int, places: Tensor) -> Tensor | None:
        """(1 or N, T, K) bool of some rows; None if all are causal."""
        if all(piece.mask is None for piece in pieces):
            return None
        every = torch.arange(keys, device=places.device)
        heads = max(1 if piece.mask is None else len(piece.mask) for piece in pieces)
        parts = []
        for piece in pieces:
            count = piece.values.shape[-2]
            part = every <= (piece.start + torch.arange(count, device=every.device))[:, None]
            part = part.expand(heads, count, keys)
            if piece.mask is not None:
                part = torch.zeros_like(part)
                seen = min(keys, piece.mask.shape[2])
                part[..., :seen] = piece.mask[..., :seen]
            parts.append(part)
        return torch.cat(parts, 1)[:, places - self.first]

    def _check(self, places: Tensor) -> None:
        outside = (places < self.first) | (places >= self.first + len(self))
        if outside.any():
            raise RunError(
                "The attention of a generated token was not recorded.",
                found=f"Token {int(places[outside][0])} is not among the {len(self)} from "
                f"{self.first} on.",
                repair="Only tokens that are fed to the model have attention.",
            )
