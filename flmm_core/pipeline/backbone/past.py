"""The KV cache of a conversation: what was read and written once is not run again.

A later turn is run as if the conversation began with it, which gives its embeddings and, for
models that place image tokens in several dimensions, its positions; on their way into the decoder
these are moved behind what is there, and the cache is put in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone.conversation import Turns, common_length
from flmm_core.pipeline.backbone.following import Piece, Pieces
from flmm_core.pipeline.backbone.shared_prefix import cache_keyword


class Past:
    """What a VLM has read and written of one conversation.

    Attributes:
        cache: transformers' KV cache; None before anything has run.
        keyword: What the decoder calls it.
    """

    def __init__(self, vlm: Any) -> None:
        self._vlm, self._decoder = vlm, vlm.get_decoder()
        self.keyword = cache_keyword(self._decoder)
        self.cache: Any = None
        self._positions = Pieces()  # (..., S, 1)
        self._ids: list[int] = []
        self._turns: Turns = ()
        self._images: tuple[Image.Image, ...] = ()
        self._last_image_token = -1

    def __len__(self) -> int:
        """How many tokens the cache holds."""
        return 0 if self.cache is None else int(self.cache.get_seq_length())

    def remember(
        self,
        turns: Turns,
        images: Sequence[Image.Image],
        ids: Sequence[int],
        image_token_id: int,
    ) -> None:
        """Say what the cache holds: the turns, the last of them the model's, and all tokens."""
        self._turns, self._images = turns, tuple(images)
        self._ids = list(ids)[: len(self)]
        self._last_image_token = max(
            (place for place, token in enumerate(self._ids) if token == image_token_id), default=-1
        )

    def shared(self, turns: Turns, images: Sequence[Image.Image], ids: Sequence[int]) -> int:
        """How many tokens of a conversation the cache holds; the others are forgotten.

        0, and nothing is forgotten, unless the conversation continues the one remembered.
        """
        if self.cache is None or turns[: len(self._turns)] != self._turns:
            return 0
        known = zip(self._images, images, strict=False)
        if len(images) < len(self._images) or not all(_same(*pair) for pair in known):
            return 0
        kept = min(common_length(self._ids, ids), len(ids) - 1)
        if kept <= self._last_image_token:
            return 0
        if kept < len(self):
            self.cache.crop(kept - len(self))  # how many are removed, as a negative number
        self._positions.cut(kept)
        return kept

    @contextmanager
    def listening(self, *, moved: bool = False) -> Iterator[None]:
        """Learn the positions of what runs in the block.

        `moved` gives it positions that follow those known: it is text.
        """
        hook = self._decoder.register_forward_pre_hook(
            lambda _, args, kwargs: self._see(args, kwargs, moved), with_kwargs=True
        )
        try:
            yield
        finally:
            hook.remove()

    @torch.no_grad()
    def run(self, tensors: Mapping[str, Tensor]) -> None:
        """Run what follows, (1, q) tokens, perhaps with images, given as if it stood alone."""

        def put_in(_: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            alone = kwargs.get("position_ids")
            count = tensors["input_ids"].shape[1]
            placed = self._following(count) if alone is None else self._behind(alone)
            new = {self.keyword: self.cache, "attention_mask": None, "position_ids": placed}
            self._learn(placed)
            return args, {**kwargs, **new}

        hook = self._decoder.register_forward_pre_hook(put_in, with_kwargs=True)
        try:
            self._vlm.model(**tensors, use_cache=True)
        finally:
            hook.remove()

    def _see(self, args: Any, kwargs: dict[str, Any], moved: bool) -> Any:
        given, start = kwargs.get("position_ids"), self._start(kwargs)
        self._positions.cut(start)
        if moved and given is not None and self._positions:
            placed = self._following(given.shape[-1])
            self._learn(placed, start)
            return args, {**kwargs, "position_ids": placed}
        self._learn(given, start)
        return None

    def _start(self, kwargs: Mapping[str, Any]) -> int:
        cache = kwargs.get(self.keyword)
        return 0 if cache is None else int(cache.get_seq_length())

    def _learn(self, positions: Tensor | None, start: int | None = None) -> None:
        if positions is not None:
            start = len(self) if start is None else start
            self._positions.add(Piece(start, positions[..., None]))

    def _following(self, count: int) -> Tensor | None:
        """The positions of text, which rise by one in every dimension."""
        if not self._positions:
            return None
        last = self._positions[-1].values[..., -1, :]  # (..., 1)
        return last + 1 + torch.arange(count, device=last.device)

    def _behind(self, alone: Tensor) -> Tensor:
        """Positions (..., q) of what stands alone, behind the last ones."""
        if not self._positions:
            return alone + len(self)
        last = self._positions[-1].values[..., -1, 0]
        # some models count their tokens from 1
        moved = alone - alone[..., :1] + (last.flatten()[-1] + 1).to(alone.device)
        if last.ndim == 2 and moved.ndim == 3 and len(last) == len(moved) + 1:
            # the first dimension counts the tokens
            counted = len(self) + torch.arange(moved.shape[-1], device=moved.device)
            moved = torch.cat([counted.expand_as(moved[:1]), moved])
        return moved


def _same(one: Image.Image, other: Image.Image) -> bool:
    return one is other or (one.size == other.size and one.tobytes() == other.tobytes())
