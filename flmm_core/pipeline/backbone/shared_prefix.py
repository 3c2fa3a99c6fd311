"""Captions about one image: the VLM runs their common prefix once.

The RefCOCO protocol asks one caption per sentence, and `ground` one per phrase, while image and
prompt, nearly all of the sequence, stay the same. Attention is causal, so nothing in the prefix
depends on the caption: it runs once, and each caption continues from a copy of its KV cache.

Prefixes are padded on the left, so that every caption directly follows its prefix.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor


def keeps_every_key(text_config: Any) -> bool:
    """Whether all layers attend to all earlier tokens, so that a KV cache drops none."""
    kinds = getattr(text_config, "layer_types", None) or ()
    window = getattr(text_config, "sliding_window", None)
    return all(kind == "full_attention" for kind in kinds) and (bool(kinds) or window is None)


def cache_keyword(decoder: Any) -> str:
    """What the decoder calls its KV cache: transformers 5 renamed it."""
    accepted = inspect.signature(decoder.forward).parameters
    return "cache" if "cache" in accepted else "past_key_values"


class PrefixCache:
    """The KV cache of U prefixes.

    Args:
        vlm: A transformers image-text-to-text model.
        tensors: The inputs of its forward, with `input_ids` and `attention_mask` (U, S).
    """

    def __init__(self, vlm: Any, tensors: Mapping[str, Tensor]) -> None:
        self._decoder, self._embed = vlm.get_decoder(), vlm.get_input_embeddings()
        self._mask = tensors["attention_mask"]
        self._keyword = cache_keyword(self._decoder)
        self._positions: Tensor | None = None
        hook = self._decoder.register_forward_pre_hook(self._see_positions, with_kwargs=True)
        try:
            output = vlm.model(**tensors, use_cache=True)
            self._cache = output["cache" if "cache" in output else "past_key_values"]
        finally:
            hook.remove()

    def _see_positions(self, decoder: Any, args: Any, kwargs: dict[str, Any]) -> None:
        """Some models give each token a position in several dimensions: (..., U, S)."""
        self._positions = kwargs.get("position_ids")

    def read(
        self,
        prefix: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        *,
        after: int | None = None,
    ) -> None:
        """Run captions (B, S_caption), each after its prefix (B,).

        Can be called once, or again and again with `after`: then captions follow the first `after`
        tokens of their prefix, and the cache stays as it is.
        """
        which = prefix.to(input_ids.device)
        length = self._mask.shape[1] if after is None else after
        cache = self._cache
        if after is not None:
            cache = deepcopy(cache)
            if length < self._mask.shape[1]:
                cache.crop(length - self._mask.shape[1])  # how many are removed, as a negative
        cache.batch_select_indices(which)
        positions = None
        if self._positions is not None:
            # a prefix ends in text, whose positions rise by one in every dimension
            last = self._positions.expand(*self._positions.shape[:-2], len(self._mask), -1)
            last = last[..., which.to(last.device), length - 1 : length]  # (..., B, 1)
            positions = last + 1 + torch.arange(input_ids.shape[1], device=last.device)
        self._decoder(
            inputs_embeds=self._embed(input_ids),
            attention_mask=torch.cat([self._mask[which, :length], attention_mask], 1),
            position_ids=positions,
            use_cache=True,
            **{self._keyword: cache},
        )
